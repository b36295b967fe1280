//! Devices that are given to a virtual machine that exists.

use super::action::ActionError;
use super::types::VmState;
use crate::config::{DeviceConfig, DiskConfig, NetConfig, UserDeviceConfig, VmConfig, VsockConfig};
use crate::virtio::GivenTap;

/// A device that a virtual machine is to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition {
    /// A device of the host.
    Device(DeviceConfig),
    /// A device in another process.
    UserDevice(UserDeviceConfig),
    /// A disk.
    Disk(DiskConfig),
    /// A network interface.
    Net {
        /// What was asked for; its `fds` are those of the tap, if one was given.
        config: NetConfig,
        /// The tap that came with the request.
        tap: Option<GivenTap>,
    },
    /// Sockets between guest and host.
    Vsock(VsockConfig),
}

impl Addition {
    /// Looks whether it can be added in a state: before boot, for now.
    ///
    /// # Errors
    /// It can never be added after boot, or cannot yet.
    pub fn check(&self, state: VmState) -> Result<(), ActionError> {
        match state {
            VmState::Created | VmState::Shutdown => return Ok(()),
            VmState::Running | VmState::Paused => {}
        }
        let (route, id, owns_nodes) = match self {
            Self::Device(device) => ("vm.add-device", &device.id, device.guest_numa_ids.is_some()),
            Self::UserDevice(device) => (
                "vm.add-user-device",
                &device.id,
                device.guest_numa_ids.is_some(),
            ),
            Self::Disk(disk) => ("vm.add-disk", &disk.id, false),
            Self::Net { config, tap: _ } => ("vm.add-net", &config.id, false),
            Self::Vsock(vsock) => ("vm.add-vsock", &vsock.id, false),
        };
        Err(match owns_nodes {
            true => ActionError::NodesAfterBoot {
                id: id.clone().unwrap_or_else(|| "without an id".to_owned()),
            },
            false => ActionError::NotYet(route),
        })
    }

    /// Adds it to what is asked for.
    ///
    /// # Returns
    /// A tap that has to be kept for it.
    ///
    /// # Errors
    /// There is one already, and there cannot be another.
    pub fn add_to(self, config: &mut VmConfig) -> Result<Option<GivenTap>, ActionError> {
        match self {
            Self::Device(device) => config.devices.push(device),
            Self::UserDevice(device) => config.user_devices.push(device),
            Self::Disk(disk) => config.disks.push(disk),
            Self::Vsock(vsock) => config.add_vsock(vsock).map_err(ActionError::Config)?,
            Self::Net { config: net, tap } => {
                config.net.push(net);
                return Ok(tap);
            }
        }
        Ok(None)
    }
}
