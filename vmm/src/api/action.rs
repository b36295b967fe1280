//! What the VMM can be asked for.

use thiserror::Error;

use super::addition::Addition;
use super::types::{VmCounters, VmInfo, VmRemoveDevice, VmState, VmmPingResponse};
use crate::config::{ConfigErrors, VmConfig};
use crate::machine::{NmiError, PauseError};
use crate::vm::BootError;

/// Something that the VMM is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say that it is there.
    Ping,
    /// End, and the virtual machine with it.
    ShutdownVmm,
    /// Take a virtual machine in, without starting it.
    Create(Box<VmConfig>),
    /// Forget the virtual machine; stop it first if it runs.
    Delete,
    /// Start it.
    Boot,
    /// Stop it, whatever the guest does.
    Shutdown,
    /// Stop it and start it again.
    Reboot,
    /// Let its vCPUs stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Press its power button.
    PowerButton,
    /// Give its vCPUs a non-maskable interrupt.
    Nmi,
    /// Describe it.
    Info,
    /// Say what its devices have counted.
    Counters,
    /// Give it a device.
    Add(Box<Addition>),
    /// Take a device away.
    RemoveDevice(VmRemoveDevice),
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and there is nothing more to say.
    Done,
    /// The VMM is there.
    Ping(VmmPingResponse),
    /// What the virtual machine is.
    Info(Box<VmInfo>),
    /// What its devices have counted.
    Counters(VmCounters),
}

/// Why an action was not carried out. Nothing has changed then, unless it says otherwise.
#[derive(Debug, Error)]
pub enum ActionError {
    /// There is no virtual machine.
    #[error("there is no virtual machine; create one first")]
    NotCreated,
    /// There is one already.
    #[error("there is a virtual machine already; delete it first")]
    Exists,
    /// It is in a state in which that cannot be done.
    #[error("the virtual machine is {0}")]
    State(VmState),
    /// A configuration cannot be used.
    #[error("the configuration cannot be used")]
    Config(#[source] ConfigErrors),
    /// A node-owning device comes too late.
    #[error(
        "device {id}: guest_numa_ids is for devices that are there at boot: Linux knows the NUMA nodes \
         that firmware declared then, and no others. Shut the virtual machine down, add the device, \
         and boot it again"
    )]
    NodesAfterBoot {
        /// The name of the device.
        id: String,
    },
    /// Part of the interface, but not there yet.
    #[error("not supported yet: {0}")]
    NotYet(&'static str),
    /// No such device.
    #[error("there is no device {id:?}; there are {known}")]
    NoDevice {
        /// The name.
        id: String,
        /// The names that there are.
        known: String,
    },
    /// The guest has no power button.
    #[error("this guest has no power button: it has a device tree alone, and only ACPI has one")]
    NoPowerButton,
    /// vCPUs do not stop.
    #[error("the virtual machine cannot be paused")]
    Pause(#[source] PauseError),
    /// vCPUs cannot be given non-maskable interrupts.
    #[error("there is no non-maskable interrupt")]
    Nmi(#[source] NmiError),
    /// The machine could not be booted. One that was to be rebooted is shut down now.
    #[error("the virtual machine cannot be booted")]
    Boot(#[source] BootError),
    /// The VMM ends and does nothing any more.
    #[error("the VMM is ending")]
    Ending,
}
