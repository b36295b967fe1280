//! The routes: names, bodies, and the statuses of answers.
//!
//! One table; dispatch, the OpenAPI document and the tests go by it. Statuses are those of Cloud
//! Hypervisor's interface, where it says what they are.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;

use super::action::{Action, ActionError};
use super::addition::Addition;
use super::types::VmState;
use crate::config::{ConfigErrors, NetConfig, VmConfig, from_json};
use crate::virtio::GivenTap;

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
    /// Which virtual machine it needs.
    pub needs: Needs,
    /// The type of the body that it needs, if it needs one.
    pub body: Option<&'static str>,
    /// The type of what it answers with; without one, with nothing.
    pub answer: Option<&'static str>,
    /// Statuses of answers that say that it failed although everything that it needs is there.
    pub failures: &'static [u16],
}

/// What a route makes the VMM do.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// An action that needs no body; one that comes is left unread.
    Act(fn() -> Action),
    /// An action that is read from the body.
    Read(fn(&[u8]) -> Result<Action, ConfigErrors>),
    /// The same, with descriptors that came with the request.
    ReadWithFiles(fn(&[u8], Vec<OwnedFd>) -> Result<Action, ConfigErrors>),
    /// It belongs to the interface and is not there yet.
    NotYet,
}

/// Which virtual machine a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Whichever, or none.
    Nothing,
    /// None.
    NoVm,
    /// Any.
    Vm,
    /// One that is not booted.
    NotBooted,
    /// One that is not booted: what it does to others is not there yet.
    NotBootedYet,
    /// One that is booted.
    Booted,
    /// One that runs.
    Running,
    /// One that is paused.
    Paused,
}

/// Statuses of answers to a request that does not reach its route: it takes too long, it is too
/// large, its header is, the VMM is ending or has no room.
pub const BEFORE_ROUTES: [u16; 4] = [408, 413, 431, 503];

impl Route {
    /// The route of a path, if there is one.
    pub fn find(path: &str) -> Option<&'static Self> {
        let name = path.strip_prefix(ROOT)?;
        ROUTES.iter().find(|route| route.name == name)
    }

    /// Whether descriptors may come with a request.
    pub fn takes_files(&self) -> bool {
        matches!(self.effect, Effect::ReadWithFiles(_))
    }

    /// The action that a request with this body asks for, and with these descriptors if it takes any.
    ///
    /// # Errors
    /// The body is not what it has to be, or the route is not there yet.
    pub fn action(&self, body: &[u8], files: Vec<OwnedFd>) -> Result<Action, ActionError> {
        match self.effect {
            Effect::Act(action) => Ok(action()),
            Effect::Read(read) => read(body).map_err(ActionError::Config),
            Effect::ReadWithFiles(read) => read(body, files).map_err(ActionError::Config),
            Effect::NotYet => Err(ActionError::NotYet(self.name)),
        }
    }

    /// The status of the answer to a request that nothing is wrong with, by the state of the
    /// virtual machine; `None` is that there is none. A device that is named is there.
    pub fn status(&self, state: Option<VmState>) -> u16 {
        use VmState::{Created, Paused, Running, Shutdown};
        let done = if self.answer.is_some() { 200 } else { 204 };
        if matches!(self.effect, Effect::NotYet) {
            return 501;
        }
        match (self.needs, state) {
            (Needs::Nothing, _) | (Needs::NoVm, None) => done,
            (Needs::NoVm, Some(_)) => 409,
            (_, None) => 404,
            (Needs::Vm, Some(_))
            | (Needs::NotBooted | Needs::NotBootedYet, Some(Created | Shutdown))
            | (Needs::Booted, Some(Running | Paused))
            | (Needs::Running, Some(Running))
            | (Needs::Paused, Some(Paused)) => done,
            (Needs::NotBootedYet, Some(_)) => 501,
            (Needs::NotBooted | Needs::Booted | Needs::Running | Needs::Paused, Some(_)) => 405,
        }
    }

    /// Every status of an answer to a request that reaches the route, ascending.
    pub fn statuses(&self) -> Vec<u16> {
        use VmState::{Created, Paused, Running, Shutdown};
        let states = [
            None,
            Some(Created),
            Some(Running),
            Some(Paused),
            Some(Shutdown),
        ];
        let mut statuses: BTreeSet<u16> = states.map(|state| self.status(state)).into();
        statuses.extend(self.body.map(|_| 400));
        statuses.extend(self.failures);
        statuses.into_iter().collect()
    }

    const fn of(
        name: &'static str,
        method: Method,
        effect: Effect,
        needs: Needs,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            method,
            about,
            effect,
            needs,
            body: None,
            answer: None,
            failures: &[],
        }
    }

    const fn takes(mut self, body: &'static str) -> Self {
        self.body = Some(body);
        self
    }

    const fn answers(mut self, answer: &'static str) -> Self {
        self.answer = Some(answer);
        self
    }

    const fn may_fail(mut self, failures: &'static [u16]) -> Self {
        self.failures = failures;
        self
    }
}

const fn get(
    name: &'static str,
    action: fn() -> Action,
    needs: Needs,
    about: &'static str,
) -> Route {
    Route::of(name, Method::Get, Effect::Act(action), needs, about)
}

const fn put(
    name: &'static str,
    action: fn() -> Action,
    needs: Needs,
    about: &'static str,
) -> Route {
    Route::of(name, Method::Put, Effect::Act(action), needs, about)
}

const fn read(
    name: &'static str,
    read: fn(&[u8]) -> Result<Action, ConfigErrors>,
    needs: Needs,
    about: &'static str,
) -> Route {
    Route::of(name, Method::Put, Effect::Read(read), needs, about)
}

const fn not_yet(name: &'static str, about: &'static str) -> Route {
    Route::of(name, Method::Put, Effect::NotYet, Needs::Nothing, about)
}

fn create(body: &[u8]) -> Result<Action, ConfigErrors> {
    VmConfig::from_json(body).map(|config| Action::Create(Box::new(config)))
}

/// Reads a device that is to be added.
fn add<T: DeserializeOwned>(
    body: &[u8],
    addition: fn(T) -> Addition,
) -> Result<Action, ConfigErrors> {
    from_json(body).map(|device| Action::Add(Box::new(addition(device))))
}

fn add_net(body: &[u8], files: Vec<OwnedFd>) -> Result<Action, ConfigErrors> {
    let mut config: NetConfig = from_json(body)?;
    let tap = (!files.is_empty()).then(|| GivenTap::new(files));
    if let Some(tap) = &tap {
        config.set_descriptors(tap.numbers())?;
    }
    Ok(Action::Add(Box::new(Addition::Net { config, tap })))
}

fn remove_device(body: &[u8]) -> Result<Action, ConfigErrors> {
    from_json(body).map(Action::RemoveDevice)
}

/// Every route of the interface.
pub const ROUTES: [Route; 31] = [
    get(
        "vmm.ping",
        || Action::Ping,
        Needs::Nothing,
        "Says that the VMM is there",
    )
    .answers("VmmPingResponse"),
    put(
        "vmm.shutdown",
        || Action::ShutdownVmm,
        Needs::Nothing,
        "Ends the VMM, and the virtual machine with it",
    ),
    get(
        "vm.info",
        || Action::Info,
        Needs::Vm,
        "Describes the virtual machine",
    )
    .answers("VmInfo"),
    get(
        "vm.counters",
        || Action::Counters,
        Needs::Booted,
        "Says what its devices have counted",
    )
    .answers("VmCounters"),
    read(
        "vm.create",
        create,
        Needs::NoVm,
        "Takes a virtual machine in, without booting it",
    )
    .takes("VmConfig"),
    put(
        "vm.delete",
        || Action::Delete,
        Needs::Nothing,
        "Forgets the virtual machine; shuts it down first if need be",
    ),
    put(
        "vm.boot",
        || Action::Boot,
        Needs::NotBooted,
        "Boots the virtual machine",
    )
    .may_fail(&[500]),
    put(
        "vm.pause",
        || Action::Pause,
        Needs::Running,
        "Lets its vCPUs stand still",
    )
    .may_fail(&[500]),
    put(
        "vm.resume",
        || Action::Resume,
        Needs::Paused,
        "Lets its vCPUs go on",
    )
    .may_fail(&[500]),
    put(
        "vm.shutdown",
        || Action::Shutdown,
        Needs::Booted,
        "Stops the virtual machine, whatever the guest does",
    ),
    put(
        "vm.reboot",
        || Action::Reboot,
        Needs::Booted,
        "Stops the virtual machine and boots it again",
    )
    .may_fail(&[500]),
    put(
        "vm.power-button",
        || Action::PowerButton,
        Needs::Booted,
        "Presses the guest's power button",
    ),
    put(
        "vm.nmi",
        || Action::Nmi,
        Needs::Booted,
        "Gives the vCPUs a non-maskable interrupt",
    )
    .may_fail(&[501]),
    read(
        "vm.add-device",
        |body| add(body, Addition::Device),
        Needs::NotBootedYet,
        "Gives the virtual machine a PCI device of the host",
    )
    .takes("DeviceConfig"),
    read(
        "vm.add-user-device",
        |body| add(body, Addition::UserDevice),
        Needs::NotBootedYet,
        "Gives the virtual machine a PCI device in another process",
    )
    .takes("UserDeviceConfig"),
    read(
        "vm.add-disk",
        |body| add(body, Addition::Disk),
        Needs::NotBootedYet,
        "Gives the virtual machine a disk",
    )
    .takes("DiskConfig"),
    Route::of(
        "vm.add-net",
        Method::Put,
        Effect::ReadWithFiles(add_net),
        Needs::NotBootedYet,
        "Gives the virtual machine a network interface; descriptors of its tap may come with the request",
    )
    .takes("NetConfig"),
    read(
        "vm.add-vsock",
        |body| add(body, Addition::Vsock),
        Needs::NotBootedYet,
        "Gives the virtual machine sockets between guest and host",
    )
    .takes("VsockConfig"),
    read(
        "vm.remove-device",
        remove_device,
        Needs::NotBootedYet,
        "Takes a device away from the virtual machine",
    )
    .takes("VmRemoveDevice"),
    not_yet("vm.resize", "Changes vCPUs, RAM or balloon"),
    not_yet("vm.resize-disk", "Changes the size of a disk"),
    not_yet("vm.resize-zone", "Changes the size of a memory zone"),
    not_yet("vm.add-fs", "Adds a shared file system"),
    not_yet(
        "vm.add-generic-vhost-user",
        "Adds a virtio device in another process",
    ),
    not_yet("vm.add-pmem", "Adds persistent memory"),
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
