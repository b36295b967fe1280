//! Devices that an emulated host has for tests to pass through; `scripts/lab-run` puts them there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};

const PCI: &str = "/sys/bus/pci";
/// The devices are there once, for all tests of a process.
static DEVICES: Mutex<()> = Mutex::new(());

/// A device to pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostDevice {
    /// A disk (NVM Express) of 64 MiB: a function with MSI-X and a reset of its own.
    Nvme,
    /// A network card (Intel 82576) that is connected to nothing: several BARs, I/O ports among
    /// them, and MSI-X interrupts that its registers send on demand.
    NetworkCard,
    /// Memory (QEMU, docs/specs/ivshmem-spec.rst): BAR 0 is smaller than a page, BAR 2 has 128 MiB.
    SharedMemory,
    /// Made for teaching (QEMU, docs/specs/edu.rst): its registers send INTx or an MSI and copy by DMA. Function
    /// 1 beside [`SharedMemory`](Self::SharedMemory): both are in one IOMMU group, and are only reset together.
    Edu,
    /// Registers without a purpose. Function 0 beside one that the host's driver `virtio-pci` has, so that
    /// their IOMMU group cannot be passed through.
    Entangled,
    /// A virtual function of the network card, by its number: a function with MSI-X and a reset of its own, as
    /// long as there is a [`SharedCard`](crate::SharedCard).
    VirtualFunction(usize),
}

impl HostDevice {
    /// Vendor and device id.
    pub fn id(self) -> (u16, u16) {
        match self {
            Self::Nvme => (0x1b36, 0x0010),
            Self::NetworkCard => (0x8086, 0x10c9),
            Self::SharedMemory => (0x1af4, 0x1110),
            Self::Edu => (0x1234, 0x11e8),
            Self::Entangled => (0x1b36, 0x0005),
            Self::VirtualFunction(_) => (0x8086, 0x10ca),
        }
    }

    /// Its folder in sysfs.
    ///
    /// # Errors
    /// If the host does not have it.
    pub fn path(self) -> Result<PathBuf> {
        let folder = Path::new(PCI).join("devices");
        if let Self::VirtualFunction(number) = self {
            let link = Self::NetworkCard.path()?.join(format!("virtfn{number}"));
            let target = fs::read_link(&link).with_context(|| format!("no {}", link.display()))?;
            return Ok(folder.join(name(&target)));
        }
        let (vendor, device) = self.id();
        let wanted = [format!("{vendor:#06x}"), format!("{device:#06x}")];
        for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
            let path = entry?.path();
            let ids = ["vendor", "device"].map(|name| fs::read_to_string(path.join(name)));
            if ids
                .iter()
                .zip(&wanted)
                .all(|(id, wanted)| id.as_ref().is_ok_and(|id| id.trim() == wanted))
            {
                return Ok(path);
            }
        }
        anyhow::bail!(
            "the host has no {self:?} ({vendor:04x}:{device:04x}), which scripts/lab-run gives it"
        )
    }

    /// Binds it to a driver, which it stays with until it is unbound. Nobody else has it as long as a
    /// test has [`PassedThrough`] devices.
    ///
    /// # Errors
    /// If the driver does not take it, or another one has it.
    pub fn bind(self, driver: &str) -> Result<()> {
        let path = self.path()?;
        write(&path.join("driver_override"), driver)?;
        write(&Path::new(PCI).join("drivers_probe"), &name(&path))?;
        ensure!(
            fs::read_link(path.join("driver")).is_ok_and(|link| link.ends_with(driver)),
            "{driver} did not take {}",
            path.display()
        );
        Ok(())
    }

    /// Takes it away from its driver; waits until nobody uses it.
    ///
    /// # Errors
    /// If it has none.
    pub fn unbind(self) -> Result<()> {
        let path = self.path()?;
        write(&path.join("driver/unbind"), &name(&path))?;
        write(&path.join("driver_override"), "\n")
    }
}

/// Devices that are bound to vfio-pci until this is dropped. One test at a time has some; others wait.
pub struct PassedThrough {
    devices: Vec<HostDevice>,
    _turn: MutexGuard<'static, ()>,
}

impl PassedThrough {
    /// Binds devices to vfio-pci.
    ///
    /// # Errors
    /// If the host does not have them, or the driver does not take them.
    pub fn take(devices: &[HostDevice]) -> Result<Self> {
        let turn = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Self {
            devices: Vec::new(),
            _turn: turn,
        };
        for device in devices {
            taken.add(*device)?;
        }
        Ok(taken)
    }

    /// Binds another one.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn add(&mut self, device: HostDevice) -> Result<()> {
        // First, so that it is unbound even if it was not bound well.
        self.devices.push(device);
        device.bind("vfio-pci")
    }
}

impl Drop for PassedThrough {
    fn drop(&mut self) {
        for device in &self.devices {
            // A test may have done so itself.
            let _ = device.unbind();
        }
    }
}

/// What the kernel calls a device.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}
