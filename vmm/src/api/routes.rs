//! The routes: names, bodies, and the statuses of answers.
//!
//! One table; dispatch, the OpenAPI document and the tests go by it. Statuses are those of Cloud
//! Hypervisor's interface, where it says what they are.

use super::action::{Action, ActionError};
use crate::config::{ConfigErrors, VmConfig, from_json};

/// What every path begins with.
pub const ROOT: &str = "/api/v1/";

/// Method of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads something.
    Get,
    /// Does something.
    Put,
}

impl Method {
    /// As HTTP spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// One thing that can be asked for.
#[derive(Debug)]
pub struct Route {
    /// Its name, behind [`ROOT`].
    pub name: &'static str,
    /// Its only method.
    pub method: Method,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// What it makes the VMM do.
    pub effect: Effect,
}

/// What a route makes the VMM do.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// An action that needs no body; one that comes is left unread.
    Act(fn() -> Action),
    /// An action that is read from the body.
    Read(fn(&[u8]) -> Result<Action, ConfigErrors>),
    /// It belongs to the interface and is not there yet.
    NotYet,
}

impl Route {
    /// The route of a path, if there is one.
    pub fn find(path: &str) -> Option<&'static Self> {
        let name = path.strip_prefix(ROOT)?;
        ROUTES.iter().find(|route| route.name == name)
    }

    /// The action that a request with this body asks for.
    ///
    /// # Errors
    /// The body is not what it has to be, or the route is not there yet.
    pub fn action(&self, body: &[u8]) -> Result<Action, ActionError> {
        match self.effect {
            Effect::Act(action) => Ok(action()),
            Effect::Read(read) => read(body).map_err(ActionError::Config),
            Effect::NotYet => Err(ActionError::NotYet(self.name)),
        }
    }
}

const fn get(name: &'static str, action: fn() -> Action, about: &'static str) -> Route {
    Route {
        name,
        method: Method::Get,
        about,
        effect: Effect::Act(action),
    }
}

const fn put(name: &'static str, action: fn() -> Action, about: &'static str) -> Route {
    Route {
        name,
        method: Method::Put,
        about,
        effect: Effect::Act(action),
    }
}

const fn read(
    name: &'static str,
    read: fn(&[u8]) -> Result<Action, ConfigErrors>,
    about: &'static str,
) -> Route {
    Route {
        name,
        method: Method::Put,
        about,
        effect: Effect::Read(read),
    }
}

const fn not_yet(name: &'static str, about: &'static str) -> Route {
    Route {
        name,
        method: Method::Put,
        about,
        effect: Effect::NotYet,
    }
}

fn create(body: &[u8]) -> Result<Action, ConfigErrors> {
    VmConfig::from_json(body).map(|config| Action::Create(Box::new(config)))
}

fn add_device(body: &[u8]) -> Result<Action, ConfigErrors> {
    from_json(body).map(|device| Action::AddDevice(Box::new(device)))
}

fn add_user_device(body: &[u8]) -> Result<Action, ConfigErrors> {
    from_json(body).map(|device| Action::AddUserDevice(Box::new(device)))
}

fn remove_device(body: &[u8]) -> Result<Action, ConfigErrors> {
    from_json(body).map(Action::RemoveDevice)
}

/// Every route of the interface.
pub const ROUTES: [Route; 31] = [
    get("vmm.ping", || Action::Ping, "Says that the VMM is there"),
    put(
        "vmm.shutdown",
        || Action::ShutdownVmm,
        "Ends the VMM, and the virtual machine with it",
    ),
    get("vm.info", || Action::Info, "Describes the virtual machine"),
    get(
        "vm.counters",
        || Action::Counters,
        "Says what its devices have counted",
    ),
    read(
        "vm.create",
        create,
        "Takes a virtual machine in, without booting it",
    ),
    put(
        "vm.delete",
        || Action::Delete,
        "Forgets the virtual machine; shuts it down first if need be",
    ),
    put("vm.boot", || Action::Boot, "Boots the virtual machine"),
    put("vm.pause", || Action::Pause, "Lets its vCPUs stand still"),
    put("vm.resume", || Action::Resume, "Lets its vCPUs go on"),
    put(
        "vm.shutdown",
        || Action::Shutdown,
        "Stops the virtual machine, whatever the guest does",
    ),
    put(
        "vm.reboot",
        || Action::Reboot,
        "Stops the virtual machine and boots it again",
    ),
    put(
        "vm.power-button",
        || Action::PowerButton,
        "Presses the guest's power button",
    ),
    put(
        "vm.nmi",
        || Action::Nmi,
        "Gives the vCPUs a non-maskable interrupt",
    ),
    read(
        "vm.add-device",
        add_device,
        "Gives the virtual machine a PCI device of the host",
    ),
    read(
        "vm.add-user-device",
        add_user_device,
        "Gives the virtual machine a PCI device in another process",
    ),
    read(
        "vm.remove-device",
        remove_device,
        "Takes a device away from the virtual machine",
    ),
    not_yet("vm.resize", "Changes vCPUs, RAM or balloon"),
    not_yet("vm.resize-disk", "Changes the size of a disk"),
    not_yet("vm.resize-zone", "Changes the size of a memory zone"),
    not_yet("vm.add-disk", "Adds a disk"),
    not_yet("vm.add-fs", "Adds a shared file system"),
    not_yet(
        "vm.add-generic-vhost-user",
        "Adds a virtio device in another process",
    ),
    not_yet("vm.add-pmem", "Adds persistent memory"),
    not_yet("vm.add-net", "Adds a network interface"),
    not_yet("vm.add-vsock", "Adds a vsock device"),
    not_yet("vm.add-vdpa", "Adds a vDPA device"),
    not_yet("vm.snapshot", "Saves the virtual machine"),
    not_yet("vm.coredump", "Saves the guest's memory for a debugger"),
    not_yet("vm.restore", "Goes on with a saved virtual machine"),
    not_yet(
        "vm.receive-migration",
        "Takes a virtual machine from another host",
    ),
    not_yet(
        "vm.send-migration",
        "Moves the virtual machine to another host",
    ),
];
