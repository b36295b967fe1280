//! The host's end of a console, in the main event loop.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::file::{self, NewFile};
use super::input::{Pump, Received};
use super::output::Output;
use super::pty::Pty;
use super::screen::Screen;
use super::socket::Listener;
use super::tty::Stdin;
use super::{ConsoleError, Mode, Port, terminal};

/// The host's end of a console.
///
/// It is a subscriber of the main event loop and lives as long as the process. Dropping it restores
/// the terminal or removes the socket, after one last attempt to deliver what output is left; a file
/// that it created goes too if no machine has run.
pub struct Backend {
    port: Port,
    host: Host,
    /// The descriptor that input comes from and, unless it is standard input, output goes to.
    link: Option<Link>,
    pump: Pump,
    /// The terminal, if its size matters.
    screen: Option<Screen>,
}

/// What a console is on the host, beyond the descriptor that input is read from.
enum Host {
    /// Output only, written directly.
    Output,
    /// The same, to a file; what goes again if no machine ever runs.
    File(Option<NewFile>),
    Stdin(Stdin),
    Pty(Pty),
    Socket(Listener),
}

/// A descriptor that is read from and written to when epoll says so.
struct Link {
    file: Arc<File>,
    /// Whether input may still come.
    reads: bool,
    /// Whether output goes here.
    writes: bool,
    /// False for what epoll does not take, like regular files: always ready.
    pollable: bool,
    /// Events that epoll was told to report, once.
    armed: Option<EventSet>,
}

impl Link {
    fn new(file: Arc<File>, writes: bool) -> Self {
        Self {
            file,
            reads: true,
            writes,
            pollable: true,
            armed: None,
        }
    }
}

impl Backend {
    /// Opens a console for output and input.
    ///
    /// A terminal goes into raw mode at once; a file is created; the socket of a process that is gone
    /// is replaced.
    ///
    /// # Errors
    /// [`ConsoleError`], which names the path where there is one.
    pub fn open(mode: &Mode) -> Result<Self, ConsoleError> {
        let (host, output, link) = match mode {
            Mode::Null => (Host::Output, Output::Discard, None),
            Mode::File(path) => {
                let (file, new) = file::open(path)?;
                (Host::File(new), Output::direct_to_stale(file), None)
            }
            Mode::Tty => {
                let output = Output::direct(terminal::duplicate(io::stdout())?);
                let stdin = Stdin::open()?;
                let link = Link::new(stdin.file.clone(), false);
                (Host::Stdin(stdin), output, Some(link))
            }
            Mode::Pty => {
                let pty = Pty::open()?;
                log::info!("console is on {}", pty.path().display());
                let link = Link::new(pty.master.clone(), true);
                let output = Output::buffered(Some(pty.master.clone()));
                (Host::Pty(pty), output, Some(link))
            }
            Mode::Socket(path) => {
                let listener = Listener::open(path)?;
                (Host::Socket(listener), Output::buffered(None), None)
            }
        };
        Self::new(host, output, link, None)
    }

    /// Opens a console whose input nobody will ever take, such as the debug console's.
    ///
    /// Standard input and its terminal are left alone; what others send is discarded.
    ///
    /// # Errors
    /// As for [`Backend::open`].
    pub fn open_output(mode: &Mode) -> Result<Self, ConsoleError> {
        if *mode == Mode::Tty {
            let output = Output::direct(terminal::duplicate(io::stdout())?);
            return Self::new(Host::Output, output, None, None);
        }
        let backend = Self::open(mode)?;
        backend.port.attach(Arc::new(Discard));
        Ok(backend)
    }

    /// Opens a console for a device that uses [`Port::offer`], and watches the size of the terminal if
    /// it is one. Standard input is read only where it is a terminal: this console is there without being
    /// asked for, and a pipe may be meant for somebody else.
    ///
    /// # Errors
    /// As for [`Backend::open`].
    pub fn open_for_queue(mode: &Mode) -> Result<Self, ConsoleError> {
        match mode {
            Mode::File(path) => {
                let (file, new) = file::open(path)?;
                Self::new(Host::File(new), Output::paced(file, true)?, None, None)
            }
            Mode::Tty => {
                let screen = Screen::of_process()?;
                let output = Output::paced(terminal::duplicate(io::stdout())?, false)?;
                if !io::stdin().is_terminal() {
                    return Self::new(Host::Output, output, None, screen);
                }
                let stdin = Stdin::open()?;
                let link = Link::new(stdin.file.clone(), false);
                Self::new(Host::Stdin(stdin), output, Some(link), screen)
            }
            Mode::Pty => {
                let pty = Pty::open()?;
                let screen = Screen::of_pty(pty.master.clone())?;
                let link = Link::new(pty.master.clone(), true);
                let output = Output::buffered(Some(pty.master.clone()));
                Self::new(Host::Pty(pty), output, Some(link), Some(screen))
            }
            Mode::Null | Mode::Socket(_) => Self::open(mode),
        }
    }

    fn new(
        host: Host,
        output: Output,
        link: Option<Link>,
        screen: Option<Screen>,
    ) -> Result<Self, ConsoleError> {
        Ok(Self {
            port: Port::new(output, screen.as_ref().map(Screen::size))?,
            host,
            link,
            pump: Pump::default(),
            screen,
        })
    }

    /// A handle to the machine's end.
    pub fn port(&self) -> Port {
        self.port.clone()
    }

    /// What a user opens, if the console is a pseudo-terminal.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.host {
            Host::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// Whether a read from the link would have somewhere to go.
    fn wants_input(&self) -> bool {
        let available = match &self.host {
            Host::Stdin(stdin) => stdin.is_available(),
            _ => true,
        };
        available && self.pump.is_idle() && self.port.sink().is_some()
    }

    /// What epoll should report of the link, if anything.
    ///
    /// Always one-shot: a hang-up is reported without being asked for, and a link that has hung up
    /// must not be polled while the guest has no room for what is left to read from it.
    fn interest(&self) -> Option<EventSet> {
        let link = self.link.as_ref()?;
        let mut events = EventSet::ONE_SHOT;
        if link.reads && self.wants_input() {
            events |= EventSet::IN;
        }
        if link.writes && self.port.shared.output.has_backlog() {
            events |= EventSet::OUT;
        }
        (link.writes || events.contains(EventSet::IN)).then_some(events)
    }

    /// Tells epoll about a new link.
    fn register(&mut self, ops: &mut EventOps) {
        let events = self.interest();
        let Some(link) = &mut self.link else { return };
        match ops.add(Events::new(
            &*link.file,
            events.unwrap_or(EventSet::ONE_SHOT),
        )) {
            Ok(()) => link.armed = events,
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EPERM => {
                link.pollable = false;
            }
            Err(e) => {
                log::error!("console input is lost: cannot poll it: {e}");
                link.reads = false;
                link.pollable = false;
            }
        }
    }

    /// Asks for the next event of the link.
    fn rearm(&mut self, ops: &EventOps) {
        let events = self.interest();
        let Some(link) = &mut self.link else { return };
        if !link.pollable {
            if events.is_some() {
                self.port.wake();
            }
            return;
        }
        if let Some(events) = events
            && link.armed != Some(events)
        {
            match ops.modify(Events::new(&*link.file, events)) {
                Ok(()) => link.armed = Some(events),
                Err(e) => log::error!("cannot poll console input: {e}"),
            }
        }
    }

    /// Reads once from the link, if that can be delivered.
    fn receive(&mut self) {
        if let Host::Stdin(Stdin {
            terminal: Some(terminal),
            ..
        }) = &mut self.host
            && let Err(e) = terminal.keep()
        {
            report(e);
        }
        if !self.wants_input() {
            return;
        }
        if let (Some(link), Some(sink)) = (&mut self.link, self.port.sink())
            && link.reads
            && self.pump.receive(&link.file, &*sink) == Received::End
        {
            link.reads = false;
        }
    }

    fn on_link(&mut self, events: EventSet, ops: &mut EventOps) {
        if let Some(link) = &mut self.link {
            link.armed = None;
        }
        if events.contains(EventSet::OUT) {
            self.port.shared.output.flush();
        }
        let over = EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(EventSet::IN | over) {
            self.receive();
        }
        let Some(link) = &mut self.link else { return };
        if events.intersects(over) && link.writes {
            // What the client sent before it left may still have to be read.
            link.writes = false;
            self.port.shared.output.connect(None);
        }
        if !link.reads && !link.writes {
            self.unlink(ops);
        }
    }

    /// The machine's end has something to tell.
    fn on_wake(&mut self) {
        // Only resets the event's readiness.
        let _ = self.port.shared.wake.read();
        if let Some(sink) = self.port.sink() {
            self.pump.deliver(&*sink);
        }
        if self.link.as_ref().is_some_and(|link| !link.pollable) {
            self.receive();
        }
    }

    /// Looks whether the terminal has another size: whenever something else is to be done, too, since
    /// it may be its user who has done it.
    fn on_screen(&mut self, fd: RawFd) {
        let Some(screen) = &mut self.screen else {
            return;
        };
        if screen.descriptor() == fd {
            screen.take_event();
        }
        if let Some(size) = screen.look() {
            self.port.resize(size);
        }
    }

    /// Clients wait: the newest takes the place of any earlier one.
    fn on_client(&mut self, ops: &mut EventOps) {
        while let Host::Socket(listener) = &self.host {
            match listener.accept() {
                Ok(Some(file)) => {
                    self.unlink(ops);
                    let file = Arc::new(file);
                    self.port.shared.output.connect(Some(file.clone()));
                    self.link = Some(Link::new(file, true));
                    self.register(ops);
                }
                Ok(None) => return,
                Err(e) => {
                    log::error!("console socket: cannot accept a client: {e}");
                    return;
                }
            }
        }
    }

    fn unlink(&mut self, ops: &mut EventOps) {
        if let Some(link) = self.link.take() {
            self.port.shared.output.connect(None);
            if let Err(e) = ops.remove(Events::empty(&*link.file)) {
                log::error!("cannot stop polling a console client: {e}");
            }
        }
    }
}

impl MutEventSubscriber for Backend {
    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::new(&self.port.shared.wake, EventSet::IN);
        let host = match &self.host {
            // Edge-triggered, so that a client that cannot be accepted, for want of descriptors,
            // does not keep the loop busy; the next one that comes makes it try again.
            Host::Socket(socket) => Some(Events::new(
                socket.listener.socket(),
                EventSet::IN | EventSet::EDGE_TRIGGERED,
            )),
            Host::Stdin(Stdin {
                terminal: Some(terminal),
                ..
            }) => Some(Events::new(&terminal.timer, EventSet::IN)),
            _ => None,
        };
        let screen = self.screen.as_ref();
        let screen = screen.map(|screen| Events::new_raw(screen.descriptor(), EventSet::IN));
        for events in [Some(wake), host, screen].into_iter().flatten() {
            if let Err(e) = ops.add(events) {
                log::error!("cannot poll a console: {e}");
            }
        }
        self.register(ops);
        self.rearm(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        let screen = self.screen.as_ref().map(Screen::descriptor);
        self.on_screen(fd);
        if screen == Some(fd) {
            return;
        }
        if fd == self.port.shared.wake.as_raw_fd() {
            self.on_wake();
        } else if self.link.as_ref().is_some_and(|l| l.file.as_raw_fd() == fd) {
            self.on_link(events.event_set(), ops);
        } else if let Host::Stdin(Stdin {
            terminal: Some(terminal),
            ..
        }) = &mut self.host
        {
            if let Err(e) = terminal.look() {
                report(e);
            }
        } else {
            self.on_client(ops);
        }
        self.rearm(ops);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.port.shared.output.flush();
        self.port.shared.output.close();
        if let Host::File(new) = &mut self.host
            && !self.port.shared.output.is_stale()
        {
            new.take().into_iter().for_each(NewFile::keep);
        }
    }
}

/// Takes any input and forgets it.
struct Discard;

impl super::InputSink for Discard {
    fn accept(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

fn report(error: ConsoleError) {
    log::error!("{:#}", anyhow::Error::from(error));
}
