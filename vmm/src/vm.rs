//! The virtual machine: what was asked for, and while it is booted, all that takes.

mod consoles;
mod info;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use self::consoles::OpenConsoles;
use crate::api::{VmCounters, VmInfo, VmState};
use crate::config::VmConfig;
use crate::console::ConsoleError;
use crate::events::{Event, Events};
use crate::machine::{
    self, Control, Host, Machine, MachineError, NmiError, PauseError, Payload, PayloadError,
};
use crate::passthrough::{Passthrough, PassthroughError};
use crate::plan::{Plan, PlanError};
use crate::virtio::{BackendError, Backends, GivenTap, GivenTaps};
use crate::vmm::Clock;

/// Waits for descriptors in the main thread.
pub type MainLoop = EventManager<Subscriber>;
/// What the main loop tells of its descriptors.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How often the files behind the memory of other processes' devices are looked at: a guest that meets
/// one that has shrunk may stand still so long.
const LOOK: Duration = Duration::from_millis(500);

/// Why a virtual machine cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// A device cannot be passed through.
    #[error(transparent)]
    Passthrough(#[from] PassthroughError),
    /// Something that a device needs cannot be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The configuration does not fit this host.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Kernel or initramfs.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The machine could not be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A console could not be opened.
    #[error("{option}")]
    Console {
        /// The option at fault.
        option: &'static str,
        /// Why.
        #[source]
        source: ConsoleError,
    },
    /// The host has no room for timers and events.
    #[error("cannot wait for events")]
    Events(#[source] io::Error),
}

/// What of this process every virtual machine uses.
pub struct Process {
    /// What the host offers.
    pub host: Host,
    /// Where a machine says that it ends.
    pub control: Arc<Control>,
    /// Written when a device was lost.
    pub losses: Arc<EventFd>,
    /// Who is told what happens.
    pub monitor: Events,
}

/// A virtual machine, booted or not.
pub struct Vm {
    config: VmConfig,
    booted: Option<Booted>,
    was_booted: bool,
    taps: GivenTaps,
}

/// A virtual machine that is booted.
///
/// Fields are dropped in order: the machine before what is lent to it.
struct Booted {
    machine: Machine,
    lent: Lent,
}

/// What outlives a reboot: opened once for all machines that are built from one plan.
struct Lent {
    plan: Plan,
    passthrough: Passthrough,
    backends: Backends,
    consoles: OpenConsoles,
    subscribers: Vec<SubscriberId>,
}

impl Vm {
    /// A virtual machine that is not booted yet. The configuration must be valid.
    pub fn new(mut config: VmConfig) -> Self {
        config.name_devices();
        Self {
            config,
            booted: None,
            was_booted: false,
            taps: GivenTaps::default(),
        }
    }

    /// What was asked for; every device has a name.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Changes what was asked for; what comes of it shows when it is booted the next time. The
    /// configuration must be valid.
    pub fn set_config(&mut self, mut config: VmConfig) {
        config.name_devices();
        self.taps.retain(&config);
        self.config = config;
    }

    /// Keeps a tap that an interface of the configuration has.
    pub fn keep_tap(&mut self, tap: GivenTap) {
        self.taps.add(tap);
    }

    /// What it is doing.
    pub fn state(&self) -> VmState {
        match &self.booted {
            Some(Booted { machine, .. }) if machine.is_paused() => VmState::Paused,
            Some(_) => VmState::Running,
            None if self.was_booted => VmState::Shutdown,
            None => VmState::Created,
        }
    }

    /// What it is, for the API.
    pub fn info(&self) -> VmInfo {
        let booted = self.booted.as_ref();
        let state = self.state();
        info::info(&self.config, state, booted.map(|booted| &booted.lent))
    }

    /// What its devices have counted since it was booted; reboots count on.
    pub fn counters(&self) -> VmCounters {
        let backends = self.booted.as_ref().map(|booted| &booted.lent.backends);
        backends.map(Backends::counters).unwrap_or_default()
    }

    /// Plans it, opens what it needs, and starts it. It must not be booted.
    ///
    /// # Errors
    /// Any [`BootError`]; nothing is left open then.
    pub fn boot(&mut self, process: &Process, main_loop: &mut MainLoop) -> Result<(), BootError> {
        process.monitor.report(Event::Booting);
        self.taps.claim(&self.config)?;
        let lent = Lent::open(&self.config, &self.taps, process, main_loop)?;
        self.start(lent, process, main_loop)?;
        self.was_booted = true;
        process.monitor.report(Event::Booted);
        Ok(())
    }

    /// Stops it and starts it again, from the same plan. If it is not booted, nothing happens.
    ///
    /// # Errors
    /// Any [`BootError`]; it is shut down then.
    pub fn reboot(&mut self, process: &Process, main_loop: &mut MainLoop) -> Result<(), BootError> {
        let Some(Booted { machine, lent }) = self.booted.take() else {
            return Ok(());
        };
        process.monitor.report(Event::Rebooting);
        stop(machine, process);
        let started = self.start(lent, process, main_loop);
        process.monitor.report(match started {
            Ok(()) => Event::Rebooted,
            Err(_) => Event::Shutdown,
        });
        started
    }

    /// Stops it, whatever the guest does, and closes what it used.
    pub fn shutdown(&mut self, process: &Process, main_loop: &mut MainLoop) {
        if let Some(Booted { machine, lent }) = self.booted.take() {
            stop(machine, process);
            lent.close(main_loop);
            process.monitor.report(Event::Shutdown);
        }
    }

    /// Lets its vCPUs stand still. If it is not booted, nothing happens.
    ///
    /// # Errors
    /// A vCPU does not stop; all run on then.
    pub fn pause(&self, process: &Process) -> Result<(), PauseError> {
        if let Some(booted) = &self.booted {
            process.monitor.report(Event::Pausing);
            booted.machine.pause()?;
            process.monitor.report(Event::Paused);
        }
        Ok(())
    }

    /// Lets its vCPUs go on. If it is not booted, nothing happens.
    pub fn resume(&self, process: &Process) {
        if let Some(booted) = &self.booted {
            process.monitor.report(Event::Resuming);
            booted.machine.resume();
            process.monitor.report(Event::Resumed);
        }
    }

    /// Presses its power button.
    ///
    /// # Returns
    /// Whether there is one.
    pub fn press_power_button(&self) -> bool {
        let machine = self.booted.as_ref().map(|booted| &booted.machine);
        let button = machine.and_then(Machine::power_button);
        button.map(|button| button.press()).is_some()
    }

    /// Gives its vCPUs a non-maskable interrupt. If it is not booted, nothing happens.
    ///
    /// # Errors
    /// There are none on this architecture.
    pub fn nmi(&self) -> Result<(), NmiError> {
        let machine = self.booted.as_ref().map(|booted| &booted.machine);
        machine.map_or(Ok(()), Machine::nmi)
    }

    /// Takes devices that were lost out of the guest; cheap where there are none.
    pub fn let_go_of_lost(&self) {
        if let Some(Booted { machine, lent }) = &self.booted {
            machine.let_go_of_lost(&lent.passthrough);
        }
    }

    fn start(
        &mut self,
        lent: Lent,
        process: &Process,
        main_loop: &mut MainLoop,
    ) -> Result<(), BootError> {
        match lent.start(&self.config, process) {
            Ok(machine) => {
                self.booted = Some(Booted { machine, lent });
                Ok(())
            }
            Err(error) => {
                lent.close(main_loop);
                Err(error)
            }
        }
    }
}

/// Stops a machine, and forgets why it ended: what vCPUs asked for before they stopped belongs to
/// the boot that is over.
fn stop(machine: Machine, process: &Process) {
    drop(machine);
    process.control.take();
}

impl Lent {
    fn open(
        config: &VmConfig,
        taps: &GivenTaps,
        process: &Process,
        main_loop: &mut MainLoop,
    ) -> Result<Self, BootError> {
        let passthrough = Passthrough::open(config, &process.losses, &process.monitor)?;
        let mut facts = process.host.facts.clone();
        facts.devices = passthrough.facts();
        let plan = Plan::new(config, &facts)?;
        if let Some(pci) = &plan.pci {
            passthrough.set_names(pci);
        }
        warn(config, &plan);
        let (consoles, ends) = consoles::open(config)?;
        let backends = Backends::open(config, consoles.consoles.virtio.as_ref(), taps)?;
        let mut subscribers: Vec<Subscriber> = Vec::new();
        for backend in ends {
            subscribers.push(Arc::new(Mutex::new(backend)));
        }
        for watch in passthrough.watches()? {
            subscribers.push(Arc::new(Mutex::new(watch)));
        }
        if !config.user_devices.is_empty() {
            let clock = Clock::every(LOOK).map_err(BootError::Events)?;
            subscribers.push(Arc::new(Mutex::new(clock)));
        }
        let subscribers = subscribers.into_iter();
        Ok(Self {
            plan,
            passthrough,
            backends,
            consoles,
            subscribers: subscribers
                .map(|subscriber| main_loop.add_subscriber(subscriber))
                .collect(),
        })
    }

    /// One boot.
    fn start(&self, config: &VmConfig, process: &Process) -> Result<Machine, BootError> {
        let mut payload = Payload::open(&config.payload)?;
        let machine = Machine::start(
            &process.host,
            &self.plan,
            config,
            &mut payload,
            &machine::Lent {
                passthrough: &self.passthrough,
                backends: &self.backends,
                consoles: &self.consoles.consoles,
            },
            &process.control,
        )?;
        Ok(machine)
    }

    fn close(self, main_loop: &mut MainLoop) {
        for subscriber in self.subscribers {
            // It closes what it has when it is dropped.
            if let Err(error) = main_loop.remove_subscriber(subscriber) {
                log::error!("the main loop has lost a subscriber: {error:?}");
            }
        }
    }
}

fn warn(config: &VmConfig, plan: &Plan) {
    for warning in plan.warnings() {
        log::warn!("{warning}");
    }
    if !config.platform.vfio_p2p_dma {
        for warning in plan.isolation_warnings() {
            log::warn!("{warning}");
        }
    }
}
