//! All connections: which packet is whose, and whose turn it is.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::Permissions;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::backend::{Stream, VsockHost};
use super::connection::{BUFFER, Connection, Next, Stage, Verdict};
use super::greeting::{self, Greeting};
use super::packet::{HEADER, HOST_CID, Header, STREAM, op};
use super::ring::Rings;
use super::table::{Key, Table};
use crate::virtio::buffers::{Buffers, Part, length_of, put, take, truncate};
use crate::virtio::{Chain, Memory};

/// The most connections that programs of the host have asked for and the guest has not accepted yet.
/// Further ones wait to be accepted.
pub const MOST_HALF_OPEN: usize = 128;
/// Refusals that wait for the guest; while there are so many, no more of its packets are taken.
pub const MOST_REFUSALS: usize = 64;
/// Data of one packet to the guest, at most.
const MOST_DATA: u64 = 64 << 10;
/// Descriptors of one packet, at most: as many as a queue has. A driver may not use more (section
/// 2.7.5.3.1), and each takes room here.
const MOST_DESCRIPTORS: usize = 256;
/// After that it is looked again whether a client can be accepted, where the host has had no room.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// What is heard at once.
const EVENTS: usize = 64;

/// The socket that is listened on.
const LISTENER: u64 = u64::MAX;
/// A time has come.
const TIMER: u64 = u64::MAX - 1;

/// How long others are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a client to say which port it wants, and then for the guest to accept.
    pub half_open: Duration,
    /// For the guest to say that it has taken in that a connection is over.
    pub linger: Duration,
}

/// What Linux waits for, in the guest, for the same.
pub const PATIENCE: Patience = Patience {
    half_open: Duration::from_secs(2),
    linger: Duration::from_secs(8),
};

/// A packet of no connection that is refused.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    guest_port: u32,
    host_port: u32,
    kind: u16,
}

/// What became of a guest's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It has a packet of so many bytes.
    Packet(u32),
    /// There is nothing for the guest.
    Nothing,
    /// It has no room for a packet.
    Unfit,
}

/// The connections of a device that a driver has started.
pub struct Switch {
    host: Arc<VsockHost>,
    cid: u64,
    patience: Patience,
    table: Table,
    rings: Rings,
    refusals: VecDeque<Refusal>,
    /// Places of those that have something for the guest, in the order of their turns.
    news: VecDeque<u16>,
    half_open: usize,
    /// A client may wait.
    client_waits: bool,
    /// When it is tried again to accept one.
    accept_again: Option<Instant>,

    sockets: Epoll,
    timer: TimerFd,
    /// What the timer is set to.
    armed: Option<Instant>,
    stood_still: Option<Instant>,

    parts: Vec<Part>,
    buffers: Buffers,
}

impl Switch {
    /// Without connections.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(host: Arc<VsockHost>, cid: u64, patience: Patience) -> io::Result<Self> {
        let sockets = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let switch = Self {
            host,
            cid,
            patience,
            table: Table::default(),
            rings: Rings::new(BUFFER as usize),
            refusals: VecDeque::with_capacity(MOST_REFUSALS),
            news: VecDeque::new(),
            half_open: 0,
            client_waits: false,
            accept_again: None,
            sockets,
            timer,
            armed: None,
            stood_still: None,
            parts: Vec::new(),
            buffers: Buffers::default(),
        };
        switch.listen(ControlOperation::Add)?;
        let fd = switch.timer.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TIMER);
        switch.sockets.ctl(ControlOperation::Add, fd, event)?;
        Ok(switch)
    }

    /// Waits for clients. What is waited for here is told of once, each time that something changes:
    /// the timer does not have to be read for it.
    fn listen(&self, operation: ControlOperation) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        self.sockets.ctl(operation, self.host.fd(), event)
    }

    /// A descriptor that is readable when there is something to [`hear`](Self::hear).
    pub fn fd(&self) -> RawFd {
        self.sockets.as_raw_fd()
    }

    /// Takes in what the host has to say: at most so much that it comes to an end.
    ///
    /// # Errors
    /// The host does not say anything any more.
    pub fn hear(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.sockets.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in events.get(..count).unwrap_or_default() {
            match event.data() {
                LISTENER => self.client_waits = true,
                TIMER => self.expire(),
                number => self.hear_of(Key::from_number(number), event.event_set()),
            }
        }
        Ok(())
    }

    fn hear_of(&mut self, key: Key, events: EventSet) {
        if !self.table.is_there(key) {
            return;
        }
        let Some(connection) = self.table.get(key.place) else {
            return;
        };
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let readable = gone || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        let verdict = match connection.stage {
            Stage::Greeting if gone => Verdict::Forget,
            Stage::Greeting => self.greet(key.place),
            _ => connection.hear(readable, gone, &mut self.rings),
        };
        self.carry_out(key.place, verdict);
    }

    /// Listens to a client that has not said yet what it wants.
    fn greet(&mut self, place: u16) -> Verdict {
        let Some(connection) = self.table.get(place) else {
            return Verdict::Keep;
        };
        let said = connection.stream().map(greeting::read);
        match said {
            Some(Greeting::Port(guest_port)) => {
                let deadline = Instant::now() + self.patience.half_open;
                let host_port = self.table.give_ports(place, guest_port);
                let Some(connection) = self.table.get(place) else {
                    return Verdict::Keep;
                };
                connection.ask(guest_port, host_port, deadline);
                // What is behind the line is for the guest; there may be no other word of it.
                connection.hear(true, false, &mut self.rings)
            }
            Some(Greeting::NotYet) => Verdict::Keep,
            Some(Greeting::Wrong) | None => Verdict::Forget,
        }
    }

    /// Whether a client of the host may wait for whom there is room.
    pub fn can_accept(&self) -> bool {
        self.client_waits && self.half_open < MOST_HALF_OPEN && self.accept_again.is_none()
    }

    /// Accepts clients of the host, as many as there may be.
    pub fn accept(&mut self) {
        let mut left = MOST_HALF_OPEN;
        while self.can_accept() {
            if left == 0 {
                // Others have their turn, and then it is looked again.
                self.client_waits = false;
                let _ = self.listen(ControlOperation::Modify);
                return;
            }
            left -= 1;
            match self.host.accept() {
                Ok(Some(stream)) => {
                    let deadline = Instant::now() + self.patience.half_open;
                    // A client too many is hung up on.
                    if let Some(place) = self.add(Connection::of_client(stream, deadline)) {
                        self.half_open += 1;
                        self.carry_out(place, Verdict::Keep);
                    }
                }
                Ok(None) => self.client_waits = false,
                Err(error) => {
                    self.host
                        .complain(format_args!("accepting a client"), &error);
                    let again = Instant::now() + ACCEPT_AGAIN;
                    self.accept_again = Some(again);
                    self.arm(again);
                }
            }
        }
    }

    /// Adds a connection, and listens to its socket.
    fn add(&mut self, connection: Connection) -> Option<u16> {
        let fd = connection.stream().map(Stream::fd)?;
        let key = self.table.add(connection)?;
        let flags =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(flags, key.to_number());
        if let Err(error) = self.sockets.ctl(ControlOperation::Add, fd, event) {
            self.host
                .complain(format_args!("waiting for a socket"), &error);
            self.table.remove(key.place);
            return None;
        }
        Some(key.place)
    }

    /// Does what is to be done with a connection after something has happened.
    fn carry_out(&mut self, place: u16, verdict: Verdict) {
        let Some(connection) = self.table.get(place) else {
            return;
        };
        match verdict {
            Verdict::Keep => {}
            Verdict::Reset if connection.is_known() => connection.end(&mut self.rings),
            Verdict::Reset | Verdict::Forget => {
                self.forget(place);
                return;
            }
        }
        if connection.counted && !connection.is_half_open() {
            connection.counted = false;
            self.half_open -= 1;
        }
        if !connection.queued && connection.has_news() {
            connection.queued = true;
            self.news.push_back(place);
        }
        if let Some(deadline) = connection.deadline {
            self.arm(deadline);
        }
    }

    fn forget(&mut self, place: u16) {
        if let Some(mut connection) = self.table.remove(place) {
            if connection.queued {
                self.news.retain(|queued| *queued != place);
            }
            self.half_open -= usize::from(connection.counted);
            connection.end(&mut self.rings);
        }
    }

    /// Whether the guest's packets can be taken.
    pub fn can_take(&self) -> bool {
        self.refusals.len() < MOST_REFUSALS
    }

    /// Takes in a packet of the guest.
    pub fn take(&mut self, chain: Chain, memory: &Arc<Memory>) {
        self.take_parts(chain, false);
        let Some(header) = take::<HEADER>(&mut self.parts, memory) else {
            return;
        };
        let header = Header::from_bytes(&header);
        // Nobody else may speak for this guest, and nobody else is there.
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return;
        }
        if header.kind != STREAM {
            self.refuse(&header);
            return;
        }
        let Some(place) = self.table.find(header.src_port, header.dst_port) else {
            self.take_unknown(&header);
            return;
        };
        let Some(connection) = self.table.get(place) else {
            return;
        };
        let mut data = None;
        if header.op == op::RW && length_of(&self.parts) >= header.len.into() {
            truncate(&mut self.parts, header.len.into());
            let parts = &self.parts;
            let is_there = self.buffers.set(memory, parts, Permissions::Read);
            data = is_there.then_some(&mut self.buffers);
        }
        let verdict = connection.take(&header, data, &mut self.rings);
        self.buffers.clear();
        self.carry_out(place, verdict);
    }

    /// Takes in a packet of no connection.
    fn take_unknown(&mut self, header: &Header) {
        match header.op {
            op::RST => {}
            op::REQUEST if !self.table.is_full() => {
                let added = match self.host.connect(header.dst_port) {
                    Ok(stream) => self.add(Connection::of_guest(stream, header, Instant::now())),
                    Err(error) => {
                        self.complain_of_port(header.dst_port, &error);
                        None
                    }
                };
                match added {
                    Some(place) => self.carry_out(place, Verdict::Keep),
                    None => self.refuse(header),
                }
            }
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST && self.can_take() {
            self.refusals.push_back(Refusal {
                guest_port: header.src_port,
                host_port: header.dst_port,
                kind: header.kind,
            });
        }
    }

    /// Whether there is something for the guest.
    pub fn has_news(&self) -> bool {
        !self.refusals.is_empty() || !self.news.is_empty()
    }

    /// Puts the next packet for the guest into a buffer of its.
    pub fn give(&mut self, chain: Chain, memory: &Arc<Memory>) -> Filled {
        self.take_parts(chain, true);
        truncate(&mut self.parts, HEADER as u64 + MOST_DATA);
        if length_of(&self.parts) < HEADER as u64 {
            return Filled::Unfit;
        }
        let filled = self.fill(memory);
        self.buffers.clear();
        filled
    }

    fn fill(&mut self, memory: &Arc<Memory>) -> Filled {
        let permissions = Permissions::Write;
        if !self.buffers.set(memory, &self.parts, permissions) {
            return Filled::Unfit;
        }
        if let Some(refusal) = self.refusals.pop_front() {
            let Refusal {
                guest_port,
                host_port,
                kind,
            } = refusal;
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: host_port,
                dst_port: guest_port,
                kind,
                op: op::RST,
                ..Header::default()
            };
            return self.write(memory, &header);
        }
        while let Some(place) = self.news.pop_front() {
            // It is in memory, as before.
            self.buffers.set(memory, &self.parts, permissions);
            self.buffers.advance(HEADER);
            let Some(connection) = self.table.get(place) else {
                continue;
            };
            connection.queued = false;
            let linger = self.patience.linger;
            let header = match connection.next(self.cid, &mut self.buffers, linger) {
                Next::Packet(header) => header,
                Next::Nothing => {
                    self.carry_out(place, Verdict::Keep);
                    continue;
                }
                Next::NoRoom => {
                    self.carry_out(place, Verdict::Keep);
                    return Filled::Unfit;
                }
            };
            let verdict = match connection.stage {
                Stage::Over => Verdict::Forget,
                _ => Verdict::Keep,
            };
            self.carry_out(place, verdict);
            return self.write(memory, &header);
        }
        Filled::Nothing
    }

    fn write(&self, memory: &Memory, header: &Header) -> Filled {
        match put(&self.parts, memory, &header.to_bytes()) {
            // A header and at most 64 KiB.
            true => Filled::Packet(HEADER as u32 + header.len),
            false => Filled::Unfit,
        }
    }

    /// Takes a chain apart; nothing of one that is too long.
    fn take_parts(&mut self, chain: Chain, writable: bool) {
        self.parts.clear();
        for (count, descriptor) in chain.enumerate() {
            if count == MOST_DESCRIPTORS {
                self.parts.clear();
                return;
            }
            if descriptor.is_write_only() == writable && descriptor.len() > 0 {
                self.parts.push(Part {
                    gpa: descriptor.addr(),
                    bytes: descriptor.len(),
                });
            }
        }
    }

    /// Ends what has waited for too long.
    fn expire(&mut self) {
        let now = Instant::now();
        self.armed = None;
        if self.accept_again.take_if(|at| *at <= now).is_some() {
            self.client_waits = true;
        }
        let has_expired =
            |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let all = self.table.all();
        let expired =
            all.filter_map(|(place, connection)| has_expired(connection).then_some(place));
        for place in expired.collect::<Vec<_>>() {
            self.carry_out(place, Verdict::Reset);
        }
        let deadlines = self
            .table
            .all()
            .filter_map(|(_, connection)| connection.deadline);
        let next = deadlines.chain(self.accept_again).min();
        if let Some(next) = next {
            self.arm(next);
        }
    }

    /// Has the timer ring then, or earlier.
    fn arm(&mut self, at: Instant) {
        if self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        // Zero would turn it off.
        let time = at.saturating_duration_since(Instant::now());
        let time = time.max(Duration::from_millis(1));
        match self.timer.reset(time, None) {
            Ok(()) => self.armed = Some(at),
            Err(error) => self
                .host
                .complain(format_args!("setting a timer"), &error.into()),
        }
    }

    /// Nothing happens from now on, until [`Switch::go_on`].
    pub fn stand_still(&mut self) {
        self.stood_still.get_or_insert_with(Instant::now);
    }

    /// Time in which nothing happened does not count.
    pub fn go_on(&mut self) {
        let Some(since) = self.stood_still.take() else {
            return;
        };
        let pause = since.elapsed();
        let deadlines = self.table.all();
        let deadlines = deadlines.filter_map(|(_, connection)| connection.deadline.as_mut());
        for deadline in deadlines.chain(self.accept_again.as_mut()) {
            *deadline += pause;
        }
    }

    fn complain_of_port(&self, port: u32, error: &io::Error) {
        // That nobody listens is nothing to worry about.
        if !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ) {
            self.host
                .complain(format_args!("connecting the guest to port {port}"), error);
        }
    }

    /// Holds that it has no more than it may have, and forgets nothing.
    #[cfg(test)]
    pub fn check(&mut self) {
        use super::table::MOST_CONNECTIONS;

        assert!(self.refusals.len() <= MOST_REFUSALS);
        assert!(self.table.len() <= MOST_CONNECTIONS);
        let (mut half_open, mut queued, mut with_ports) = (0, 0, 0);
        for (place, connection) in self.table.all() {
            half_open += usize::from(connection.is_half_open());
            with_ports += usize::from(connection.stage != Stage::Greeting);
            queued += usize::from(connection.queued);
            assert_eq!(connection.queued, self.news.contains(&place));
            assert!(connection.queued || !connection.has_news());
            assert!(connection.waiting() <= BUFFER as usize);
            let armed = connection
                .deadline
                .is_none_or(|deadline| self.armed.is_some_and(|armed| armed <= deadline));
            assert!(armed, "nobody wakes us");
        }
        assert_eq!(self.half_open, half_open);
        assert!(half_open <= MOST_HALF_OPEN);
        assert_eq!(self.news.len(), queued);
        assert_eq!(self.table.known_ports(), with_ports);
    }
}
