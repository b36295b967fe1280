//! One virtual machine from start to end: consoles, signals, and a machine for every boot.
#![expect(unsafe_code, reason = "signal masks and signalfd")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::config::{ConsoleMode, DebugConsoleConfig, SerialConfig, VmConfig};
use crate::console::{Backend, ConsoleError, Mode};
use crate::machine::{
    Consoles, Control, Ending, Host, HostError, Machine, MachineError, Payload, PayloadError,
    VcpuFailure, prepare_for_gone_memory, prepare_kicks,
};
use crate::passthrough::{Passthrough, PassthroughError};
use crate::plan::{Plan, PlanError};

/// Why a virtual machine could not be run to a proper end.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The host cannot run guests.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A device cannot be passed through.
    #[error(transparent)]
    Passthrough(#[from] PassthroughError),
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

/// What the main loop can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    PressPowerButton,
    Shutdown,
}

/// A way to ask a running [`Vmm`] for something, from any thread.
#[derive(Clone)]
pub struct Handle {
    requests: Sender<Request>,
    event: Arc<EventFd>,
}

impl Handle {
    /// Presses the guest's power button.
    pub fn press_power_button(&self) {
        self.send(Request::PressPowerButton);
    }

    /// Ends the VMM, whatever the guest does.
    pub fn shutdown(&self) {
        self.send(Request::Shutdown);
    }

    fn send(&self, request: Request) {
        // A VMM that has ended needs no requests.
        if self.requests.send(request).is_ok() {
            let _ = self.event.write(1);
        }
    }
}

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// One virtual machine, from start to end.
pub struct Vmm {
    config: VmConfig,
    host: Host,
    plan: Plan,
    passthrough: Passthrough,
    consoles: Consoles,
    events: EventManager<Subscriber>,
    requests: Receiver<Request>,
    handle: Handle,
}

impl Vmm {
    /// Plans the machine and opens what outlives a reboot. The configuration must be valid.
    pub fn new(config: VmConfig) -> Result<Self, VmmError> {
        let mut host = Host::open()?;
        let passthrough = Passthrough::open(&config)?;
        host.facts.devices = passthrough.facts();
        let plan = Plan::new(&config, &host.facts)?;
        if let Some(pci) = &plan.pci {
            passthrough.set_names(pci);
        }
        for warning in plan.warnings() {
            log::warn!("{warning}");
        }
        if !config.platform.vfio_p2p_dma {
            for warning in plan.isolation_warnings() {
                log::warn!("{warning}");
            }
        }
        let mut events = EventManager::new().map_err(VmmError::Loop)?;
        let consoles = open_consoles(&config, &mut events)?;
        let (sender, requests) = mpsc::channel();
        let event = EventFd::new(EFD_NONBLOCK).map_err(VmmError::Events)?;
        let handle = Handle {
            requests: sender,
            event: Arc::new(event),
        };
        for watch in passthrough.watches()? {
            events.add_subscriber(Arc::new(Mutex::new(watch)));
        }
        if !config.user_devices.is_empty() {
            let clock = Clock::every(LOOK).map_err(VmmError::Events)?;
            events.add_subscriber(Arc::new(Mutex::new(clock)));
        }
        prepare_kicks().map_err(VmmError::Events)?;
        prepare_for_gone_memory(passthrough.losses()).map_err(VmmError::Events)?;
        Ok(Self {
            config,
            host,
            plan,
            passthrough,
            consoles,
            events,
            requests,
            handle,
        })
    }

    /// A way to ask for things while [`Vmm::run`] runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Boots the guest, again and again if it resets itself, until it powers off or the VMM is
    /// asked to end.
    pub fn run(mut self) -> Result<(), VmmError> {
        let control = Arc::new(Control::new().map_err(VmmError::Events)?);
        let wake = |file: &EventFd| file.try_clone().map_err(VmmError::Events);
        let ending = Wakeup(wake(control.event())?);
        self.events.add_subscriber(Arc::new(Mutex::new(ending)));
        let requested = Wakeup(wake(&self.handle.event)?);
        self.events.add_subscriber(Arc::new(Mutex::new(requested)));
        let lost = Wakeup(wake(self.passthrough.losses())?);
        self.events.add_subscriber(Arc::new(Mutex::new(lost)));
        let signals = Signals::open(self.handle.clone()).map_err(VmmError::Events)?;
        self.events.add_subscriber(Arc::new(Mutex::new(signals)));
        loop {
            match self.boot(&control)? {
                Ending::Reset => log::info!("the guest resets"),
                Ending::PowerOff | Ending::Requested => return Ok(()),
                Ending::Failed(failure) => return Err(failure.into()),
            }
        }
    }

    /// One boot of the guest.
    fn boot(&mut self, control: &Arc<Control>) -> Result<Ending, VmmError> {
        let mut payload = Payload::open(&self.config.payload)?;
        let machine = Machine::start(
            &self.host,
            &self.plan,
            &self.config,
            &mut payload,
            &self.passthrough,
            &self.consoles,
            control,
        )?;
        let ending = loop {
            if let Some(ending) = control.take() {
                break ending;
            }
            machine.let_go_of_lost(&self.passthrough);
            self.events.run().map_err(VmmError::Loop)?;
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Shutdown => control.end(Ending::Requested),
                    Request::PressPowerButton => match machine.power_button() {
                        Some(button) => button.press(),
                        None => log::warn!("this guest has no power button"),
                    },
                }
            }
        };
        drop(machine);
        // Whatever else the vCPUs asked for before they stopped belongs to the boot that is over.
        control.take();
        Ok(ending)
    }
}

fn open_consoles(
    config: &VmConfig,
    events: &mut EventManager<Subscriber>,
) -> Result<Consoles, VmmError> {
    let mut open = |option, mode: Option<Mode>, input: bool| -> Result<_, VmmError> {
        let Some(mode) = mode else {
            return Ok(None);
        };
        let backend = if input {
            Backend::open(&mode)
        } else {
            Backend::open_output(&mode)
        };
        let backend = backend.map_err(|source| VmmError::Console { option, source })?;
        if let Some(path) = backend.pty_path() {
            log::warn!("{option} is at {}", path.display());
        }
        let port = backend.port();
        events.add_subscriber(Arc::new(Mutex::new(backend)));
        Ok(Some(port))
    };
    let SerialConfig { mode, file, socket } = &config.serial;
    let serial = console_mode(*mode, file.as_ref(), socket.as_ref());
    let DebugConsoleConfig {
        mode,
        file,
        iobase: _,
    } = &config.debug_console;
    let debug = console_mode(*mode, file.as_ref(), None);
    Ok(Consoles {
        serial: open("--serial", serial, true)?,
        debug: open("--debug-console", debug, false)?,
    })
}

/// The console behind a mode; none where there is nothing to open.
fn console_mode(
    mode: ConsoleMode,
    file: Option<&std::path::PathBuf>,
    socket: Option<&std::path::PathBuf>,
) -> Option<Mode> {
    match mode {
        ConsoleMode::Off | ConsoleMode::Null => None,
        ConsoleMode::Tty => Some(Mode::Tty),
        ConsoleMode::Pty => Some(Mode::Pty),
        ConsoleMode::File => file.cloned().map(Mode::File),
        ConsoleMode::Socket => socket.cloned().map(Mode::Socket),
    }
}

/// Wakes the main loop, which then looks for itself what there is to do.
struct Wakeup(EventFd);

impl MutEventSubscriber for Wakeup {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Nothing to read means that somebody else has drained it: all the same.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            log::error!("cannot wait for events: {error:?}");
        }
    }
}

/// How often the files behind the memory of other processes' devices are looked at: a guest that meets
/// one that has shrunk may stand still so long.
const LOOK: Duration = Duration::from_millis(500);

/// Wakes the main loop now and then.
struct Clock(TimerFd);

impl Clock {
    fn every(interval: Duration) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(interval, Some(interval))?;
        Ok(Self(timer))
    }
}

impl MutEventSubscriber for Clock {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // It has expired, so this does not wait.
        if let Err(error) = self.0.wait() {
            log::error!("cannot read a timer: {error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            log::error!("cannot wait for a timer: {error:?}");
        }
    }
}

/// Signals that end the VMM in an orderly way.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Blocks the signals that the main loop reads; to be called before any thread is started, since
/// threads inherit what is blocked.
pub fn block_signals() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: the set is initialised.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: a signal set is plain data; `sigemptyset` initialises it next.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
        // SAFETY: the set is initialised and the signal number valid.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Whether this process was started with the signal ignored, as `nohup` does; it stays so.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an action is plain data, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and the old action is written to `action`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

struct Signals {
    file: File,
    handle: Handle,
}

impl Signals {
    fn open(handle: Handle) -> io::Result<Self> {
        let set = signal_set();
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised; a new descriptor is made.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file, handle })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while matches!(self.file.read(&mut info), Ok(length) if length == info.len()) {
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            log::info!("signal {number}: shutting down");
            self.handle.shutdown();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::new_raw(self.file.as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("cannot wait for signals: {error:?}");
        }
    }
}
