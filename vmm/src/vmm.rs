//! The process: one virtual machine at most, and a main loop that does what it is asked for.

mod handle;
mod wakeups;

use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::handle::Request;
use self::wakeups::{Signals, Wakeup};
use crate::api::{Action, ActionError, Addition, Answer, VmRemoveDevice, VmState, VmmPingResponse};
use crate::config::{ConfigErrors, VmConfig};
use crate::events::{Event, Events};
use crate::machine::{
    Control, Ending, HOST_ISA, Host, HostError, VcpuFailure, host_memory, prepare_for_gone_memory,
    prepare_kicks,
};
use crate::vm::{BootError, MainLoop, Process, Subscriber, Vm};

pub use self::handle::{Handle, Outcome};
pub use self::wakeups::{Clock, block_signals};

/// Why the process cannot go on.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The host cannot run guests.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The virtual machine cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host has no room for signals and events.
    #[error("cannot wait for events")]
    Events(#[source] io::Error),
    /// The main loop failed.
    #[error("cannot run the event loop")]
    Loop(#[source] event_manager::Error),
    /// A vCPU cannot run further.
    #[error(transparent)]
    Vcpu(#[from] Box<VcpuFailure>),
}

/// What a VMM does at the end of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterGuest {
    /// It ends too.
    End,
    /// It keeps the virtual machine, shut down, and waits for requests.
    Stay,
}

/// The VMM.
///
/// Fields are dropped in order: the virtual machine before what it uses.
pub struct Vmm {
    vm: Option<Vm>,
    process: Process,
    main_loop: MainLoop,
    requests: Receiver<Request>,
    handle: Handle,
    after_guest: AfterGuest,
    ending: bool,
}

impl Vmm {
    /// Opens KVM and prepares this process for virtual machines; `monitor` is told what happens.
    ///
    /// # Errors
    /// There is no KVM, or there are no descriptors left.
    pub fn new(after_guest: AfterGuest, monitor: &Events) -> Result<Self, VmmError> {
        let host = Host::open()?;
        let losses = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VmmError::Events)?;
        let process = Process {
            host,
            control: Arc::new(Control::new().map_err(VmmError::Events)?),
            losses: Arc::new(losses),
            monitor: monitor.clone(),
        };
        let mut main_loop = EventManager::new().map_err(VmmError::Loop)?;
        let (handle, requests) = Handle::new().map_err(VmmError::Events)?;
        for event in [process.control.event(), &process.losses, handle.event()] {
            let wakeup = Wakeup::on(event).map_err(VmmError::Events)?;
            add(&mut main_loop, wakeup);
        }
        let signals = Signals::open(handle.clone()).map_err(VmmError::Events)?;
        add(&mut main_loop, signals);
        prepare_kicks().map_err(VmmError::Events)?;
        prepare_for_gone_memory(&process.losses).map_err(VmmError::Events)?;
        Ok(Self {
            vm: None,
            process,
            main_loop,
            requests,
            handle,
            after_guest,
            ending: false,
        })
    }

    /// A way to ask for things while [`Vmm::run`] runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Creates a virtual machine and boots it, as the command line asks for it.
    ///
    /// # Errors
    /// The configuration is wrong, or the virtual machine cannot be booted.
    pub fn start(&mut self, config: VmConfig) -> Result<(), VmmError> {
        check(&config)?;
        let vm = self.vm.insert(Vm::new(config));
        Ok(vm.boot(&self.process, &mut self.main_loop)?)
    }

    /// Does what it is asked for, until it is asked to end, or until its guest ends and it is to
    /// end with it.
    ///
    /// # Errors
    /// It cannot go on: the guest has failed, or the host.
    pub fn run(mut self) -> Result<(), VmmError> {
        while !self.ending {
            self.look_after_guest()?;
            if !self.ending {
                self.main_loop.run().map_err(VmmError::Loop)?;
                self.serve();
            }
        }
        self.delete();
        Ok(())
    }

    /// Does what has been asked for meanwhile.
    fn serve(&mut self) {
        while !self.ending
            && let Ok(Request { action, answer }) = self.requests.try_recv()
        {
            let outcome = self.act(action);
            match (answer, outcome) {
                // Somebody who has gone needs no answer.
                (Some(answer), outcome) => drop(answer.send(outcome)),
                (None, Err(error)) => log::warn!("{error}"),
                (None, Ok(_)) => {}
            }
        }
    }

    /// Sees to a guest that has ended, and to devices that were lost.
    fn look_after_guest(&mut self) -> Result<(), VmmError> {
        let Some(vm) = self.vm.as_mut() else {
            return Ok(());
        };
        vm.let_go_of_lost();
        // What a guest did just before it was paused can wait as it does.
        if vm.state() == VmState::Paused {
            return Ok(());
        }
        let error = match self.process.control.take() {
            None => return Ok(()),
            Some(Ending::Reset) => {
                log::info!("the guest resets");
                match vm.reboot(&self.process, &mut self.main_loop) {
                    Ok(()) => return Ok(()),
                    Err(error) => Some(error.into()),
                }
            }
            Some(Ending::PowerOff) => None,
            Some(Ending::Failed(failure)) => {
                let reason = failure.summary();
                self.process
                    .monitor
                    .report(Event::VcpuFailed { reason: &reason });
                Some(failure.into())
            }
        };
        vm.shutdown(&self.process, &mut self.main_loop);
        match (self.after_guest, error) {
            (AfterGuest::End, None) => self.ending = true,
            (AfterGuest::End, Some(error)) => return Err(error),
            (AfterGuest::Stay, None) => {}
            (AfterGuest::Stay, Some(error)) => log::error!("{:#}", anyhow::Error::from(error)),
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Outcome {
        match action {
            Action::Ping => return Ok(Answer::Ping(pong())),
            Action::ShutdownVmm => {
                self.delete();
                self.ending = true;
            }
            Action::Create(config) => self.create(*config)?,
            Action::Delete => self.delete(),
            Action::Boot => self.boot()?,
            Action::Shutdown => {
                let (vm, process, main_loop) = self.booted()?;
                vm.shutdown(process, main_loop);
            }
            Action::Reboot => {
                let (vm, process, main_loop) = self.booted()?;
                vm.reboot(process, main_loop).map_err(ActionError::Boot)?;
            }
            Action::Pause => {
                let (vm, process, _) = self.in_state(&[VmState::Running])?;
                vm.pause(process).map_err(ActionError::Pause)?;
            }
            Action::Resume => {
                let (vm, process, _) = self.in_state(&[VmState::Paused])?;
                vm.resume(process);
            }
            Action::PowerButton => {
                let (vm, ..) = self.booted()?;
                if !vm.press_power_button() {
                    return Err(ActionError::NoPowerButton);
                }
            }
            Action::Nmi => self.booted()?.0.nmi().map_err(ActionError::Nmi)?,
            Action::Info => return Ok(Answer::Info(Box::new(self.created()?.info()))),
            Action::Counters => {
                let (vm, ..) = self.booted()?;
                return Ok(Answer::Counters(vm.counters()));
            }
            Action::Add(addition) => self.add(*addition)?,
            Action::RemoveDevice(device) => self.remove_device(&device)?,
        }
        Ok(Answer::Done)
    }

    fn create(&mut self, config: VmConfig) -> Result<(), ActionError> {
        if self.vm.is_some() {
            return Err(ActionError::Exists);
        }
        check(&config).map_err(ActionError::Config)?;
        self.vm = Some(Vm::new(config));
        Ok(())
    }

    fn delete(&mut self) {
        if let Some(mut vm) = self.vm.take() {
            vm.shutdown(&self.process, &mut self.main_loop);
            self.process.monitor.report(Event::Deleted);
        }
    }

    fn boot(&mut self) -> Result<(), ActionError> {
        let (vm, process, main_loop) = self.in_state(&[VmState::Created, VmState::Shutdown])?;
        vm.boot(process, main_loop).map_err(ActionError::Boot)
    }

    fn add(&mut self, addition: Addition) -> Result<(), ActionError> {
        let vm = self.created()?;
        addition.check(vm.state())?;
        let mut config = vm.config().clone();
        let tap = addition.add_to(&mut config)?;
        change(vm, config)?;
        if let Some(tap) = tap {
            vm.keep_tap(tap);
        }
        Ok(())
    }

    fn remove_device(&mut self, device: &VmRemoveDevice) -> Result<(), ActionError> {
        let vm = self.created()?;
        let mut config = vm.config().clone();
        if !config.remove_device(&device.id) {
            return Err(ActionError::NoDevice {
                id: device.id.clone(),
                known: config.device_ids().join(", "),
            });
        }
        match vm.state() {
            VmState::Created | VmState::Shutdown => change(vm, config),
            VmState::Running | VmState::Paused => Err(ActionError::NotYet(
                "vm.remove-device while the virtual machine is booted",
            )),
        }
    }

    /// The virtual machine, if there is one.
    fn created(&mut self) -> Result<&mut Vm, ActionError> {
        self.vm.as_mut().ok_or(ActionError::NotCreated)
    }

    /// The virtual machine, if it is booted, and what it runs on.
    fn booted(&mut self) -> Result<(&mut Vm, &Process, &mut MainLoop), ActionError> {
        self.in_state(&[VmState::Running, VmState::Paused])
    }

    /// The virtual machine, if it is in one of these states, and what it runs on.
    fn in_state(
        &mut self,
        states: &[VmState],
    ) -> Result<(&mut Vm, &Process, &mut MainLoop), ActionError> {
        let vm = self.vm.as_mut().ok_or(ActionError::NotCreated)?;
        match vm.state() {
            state if states.contains(&state) => Ok((vm, &self.process, &mut self.main_loop)),
            state => Err(ActionError::State(state)),
        }
    }
}

fn add(main_loop: &mut MainLoop, subscriber: impl MutEventSubscriber + Send + 'static) {
    let subscriber: Subscriber = Arc::new(Mutex::new(subscriber));
    main_loop.add_subscriber(subscriber);
}

fn check(config: &VmConfig) -> Result<(), ConfigErrors> {
    config.validate_on(HOST_ISA, &host_memory())
}

/// Gives a virtual machine that is not booted another configuration, if that is valid.
fn change(vm: &mut Vm, config: VmConfig) -> Result<(), ActionError> {
    check(&config).map_err(ActionError::Config)?;
    vm.set_config(config);
    Ok(())
}

fn pong() -> VmmPingResponse {
    VmmPingResponse {
        build_version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        pid: std::process::id(),
        features: Vec::new(),
    }
}
