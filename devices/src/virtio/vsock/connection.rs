//! A connection: its stages, its credit, and its end (sections 5.10.6.3 to 5.10.6.5).

use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::backend::Stream;
use super::packet::{HOST_CID, Header, STREAM, op, shutdown};
use super::ring::{Ring, Rings};
use crate::virtio::buffers::Buffers;

/// Bytes that a guest may have sent on a connection without the host having taken them: two of Linux's
/// largest packets.
pub const BUFFER: u32 = 128 << 10;
/// The guest is told that there is room again once so many bytes are.
const TELL_AGAIN: u32 = BUFFER / 4;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A program of the host has not said yet which port it wants.
    Greeting,
    /// The guest is asked for it.
    Asked,
    /// Bytes flow.
    Open,
    /// The guest has to be told that it is over; there is no socket any more.
    Over,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It is over, which the guest has to be told.
    Reset,
    /// It is over, and the guest knows or never knew of it.
    Forget,
}

/// Packets that the guest is owed, apart from data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owed {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
}

/// What is sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This packet, whose data, if it has any, is in the guest's memory.
    Packet(Header),
    /// There is nothing.
    Nothing,
    /// Data, for which there is no room.
    NoRoom,
}

/// A connection.
pub struct Connection {
    pub guest_port: u32,
    pub host_port: u32,
    pub stage: Stage,
    /// When it ends unless something happens.
    pub deadline: Option<Instant>,
    /// It is in the queue of those that have something for the guest.
    pub queued: bool,
    /// It is counted among those that are not accepted yet.
    pub counted: bool,
    stream: Option<Stream>,
    owed: Owed,

    /// There may be something to read.
    readable: bool,
    /// The program of the host will not write any more, and everything is read.
    ended: bool,
    /// The program of the host has gone.
    gone: bool,

    /// What the guest has said that it will not do any more.
    guest_down: u32,
    /// What the guest has to be told, and was told, that the host will not do any more.
    down: u32,
    down_told: u32,
    /// The program of the host was told that the guest does not write any more.
    write_ended: bool,

    /// What the guest has sent and the socket has not taken.
    ring: Option<Ring>,
    /// Bytes of the guest that the socket has taken, modulo 2^32.
    forwarded: u32,
    /// What the guest knows of them.
    forwarded_told: u32,

    /// Bytes that the guest was sent, modulo 2^32.
    sent: u32,
    /// What the guest says of its own buffer.
    peer_buffer: u32,
    peer_forwarded: u32,
    /// It was asked whether there is room again.
    credit_asked: bool,
}

impl Connection {
    /// A client of the host that has said nothing yet.
    pub fn of_client(stream: Stream, deadline: Instant) -> Self {
        Self {
            guest_port: 0,
            host_port: 0,
            stage: Stage::Greeting,
            deadline: Some(deadline),
            queued: false,
            counted: true,
            stream: Some(stream),
            owed: Owed::default(),
            readable: false,
            ended: false,
            gone: false,
            guest_down: 0,
            down: 0,
            down_told: 0,
            write_ended: false,
            ring: None,
            forwarded: 0,
            forwarded_told: 0,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            credit_asked: false,
        }
    }

    /// One that a guest has asked for with this packet.
    pub fn of_guest(stream: Stream, request: &Header, now: Instant) -> Self {
        let mut connection = Self::of_client(stream, now);
        connection.guest_port = request.src_port;
        connection.host_port = request.dst_port;
        connection.stage = Stage::Open;
        connection.deadline = None;
        connection.counted = false;
        connection.owed.response = true;
        connection.take_credit(request);
        connection
    }

    /// The guest is to be asked for a port.
    pub fn ask(&mut self, guest_port: u32, host_port: u32, deadline: Instant) {
        self.guest_port = guest_port;
        self.host_port = host_port;
        self.stage = Stage::Asked;
        self.deadline = Some(deadline);
        self.owed.request = true;
    }

    /// Its socket, until it is over.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Whether it takes part in the limit of those that are not accepted yet.
    pub fn is_half_open(&self) -> bool {
        matches!(self.stage, Stage::Greeting | Stage::Asked)
    }

    /// Bytes that the guest may be sent.
    fn credit(&self) -> u32 {
        let unread = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(unread)
    }

    fn take_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Takes in a packet of the guest, whose data is all that is in `data`; none if it is not in memory.
    pub fn take(
        &mut self,
        header: &Header,
        data: Option<&mut Buffers>,
        rings: &mut Rings,
    ) -> Verdict {
        match (self.stage, header.op) {
            (_, op::RST) => return Verdict::Forget,
            // It does not know yet.
            (Stage::Over | Stage::Greeting, _) => return Verdict::Keep,
            _ => self.take_credit(header),
        }
        match (self.stage, header.op) {
            (Stage::Asked, op::RESPONSE) => self.accepted(),
            (Stage::Open, op::RW) => self.receive(data, rings),
            (Stage::Open, op::SHUTDOWN) => {
                self.guest_down |= header.flags & shutdown::BOTH;
                self.flush(rings)
            }
            (Stage::Open, op::CREDIT_UPDATE) => Verdict::Keep,
            (Stage::Open, op::CREDIT_REQUEST) => {
                self.owed.credit = true;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    fn accepted(&mut self) -> Verdict {
        self.stage = Stage::Open;
        self.deadline = None;
        let answer = format!("OK {}\n", self.host_port);
        let said = self
            .stream
            .as_ref()
            .map(|stream| stream.send_bytes([answer.as_bytes(), b""]));
        // Nothing was written before, so there is room for it.
        match said {
            Some(Ok(count)) if count == answer.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    fn receive(&mut self, data: Option<&mut Buffers>, rings: &mut Rings) -> Verdict {
        let Some(data) = data else {
            return Verdict::Reset;
        };
        let waiting = self.ring.as_ref().map_or(0, Ring::len);
        let mut left = data.left();
        let is_granted = waiting
            .checked_add(left)
            .is_some_and(|sum| sum <= BUFFER as usize);
        if !is_granted || self.guest_down & shutdown::SEND != 0 {
            return Verdict::Reset;
        }
        while waiting == 0 && left > 0 && !self.is_deaf() {
            let Some(stream) = &self.stream else { break };
            match stream.send(data) {
                Ok(count) => {
                    data.advance(count);
                    left = left.saturating_sub(count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.down |= shutdown::RECEIVE,
            }
        }
        if left == 0 {
            return Verdict::Keep;
        }
        if self.is_deaf() {
            self.forward(left);
            return Verdict::Keep;
        }
        let ring = self.ring.get_or_insert_with(|| rings.get());
        ring.push(data, left);
        Verdict::Keep
    }

    /// Whether nobody on the host takes anything any more.
    fn is_deaf(&self) -> bool {
        self.down & shutdown::RECEIVE != 0
    }

    fn forward(&mut self, bytes: usize) {
        // At most as many as the guest was granted.
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
    }

    /// Takes in what the host says of the socket.
    pub fn hear(&mut self, readable: bool, gone: bool, rings: &mut Rings) -> Verdict {
        self.readable |= readable;
        self.gone |= gone;
        if gone {
            // Nobody takes it any more; what was written before is still read.
            self.down |= shutdown::RECEIVE;
            if self.ended || self.guest_down & shutdown::RECEIVE != 0 {
                self.down |= shutdown::SEND;
            }
        }
        match self.stage {
            Stage::Asked if self.gone => Verdict::Reset,
            Stage::Open => self.flush(rings),
            _ => Verdict::Keep,
        }
    }

    /// Gives the socket what it did not take before.
    fn flush(&mut self, rings: &mut Rings) -> Verdict {
        while let Some(ring) = &mut self.ring {
            if ring.len() == 0 || self.down & shutdown::RECEIVE != 0 {
                let rest = ring.len();
                self.forward(rest);
                rings.put(&mut self.ring);
                break;
            }
            let Some(stream) = &self.stream else { break };
            match stream.send_bytes(ring.parts()) {
                Ok(count) => {
                    ring.consume(count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.down |= shutdown::RECEIVE,
            }
        }
        self.follow()
    }

    /// Does on the socket what the guest has shut down, once everything before that is written.
    fn follow(&mut self) -> Verdict {
        if self.guest_down & shutdown::RECEIVE != 0 && !self.ended {
            self.ended = true;
            self.shut_down(Shutdown::Read);
        }
        if self.ring.is_some() {
            return Verdict::Keep;
        }
        if self.guest_down == shutdown::BOTH {
            return Verdict::Reset;
        }
        if self.guest_down & shutdown::SEND != 0 && !self.write_ended {
            self.write_ended = true;
            self.shut_down(Shutdown::Write);
        }
        // Nothing can happen any more.
        if self.write_ended && self.down & shutdown::SEND != 0 {
            self.down = shutdown::BOTH;
        }
        Verdict::Keep
    }

    fn shut_down(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            stream.shut_down(how);
        }
    }

    /// It is over, but for the packet that says so to the guest.
    pub fn end(&mut self, rings: &mut Rings) {
        self.stage = Stage::Over;
        self.deadline = None;
        self.stream = None;
        rings.put(&mut self.ring);
        self.owed = Owed {
            reset: true,
            ..Owed::default()
        };
    }

    /// Whether the guest has heard of it.
    pub fn is_known(&self) -> bool {
        !matches!(self.stage, Stage::Greeting) && !self.owed.request
    }

    /// Whether there is something to be read for the guest.
    fn has_data(&self) -> bool {
        self.readable && !self.ended
    }

    /// Whether the guest is to be sent something.
    pub fn has_news(&self) -> bool {
        let Owed {
            request,
            response,
            reset,
            credit,
        } = self.owed;
        match self.stage {
            Stage::Greeting => false,
            Stage::Asked | Stage::Over => request || reset,
            Stage::Open => {
                response
                    || credit
                    || self.down != self.down_told
                    || self.has_data() && (self.credit() > 0 || !self.credit_asked)
                    || self.has_room_to_tell()
            }
        }
    }

    fn has_room_to_tell(&self) -> bool {
        self.forwarded.wrapping_sub(self.forwarded_told) >= TELL_AGAIN
    }

    /// The next packet for the guest. Data goes to `data`, which is where there is room for it.
    pub fn next(&mut self, cid: u64, data: &mut Buffers, linger: Duration) -> Next {
        let Owed {
            request,
            response,
            reset,
            credit,
        } = self.owed;
        let (op, flags, len) = if reset {
            self.owed = Owed::default();
            (op::RST, 0, 0)
        } else if request {
            self.owed.request = false;
            (op::REQUEST, 0, 0)
        } else if response {
            self.owed.response = false;
            (op::RESPONSE, 0, 0)
        } else if self.stage != Stage::Open {
            return Next::Nothing;
        } else {
            match self.read(data) {
                Ok(0) => {}
                Ok(len) => return Next::Packet(self.header(cid, op::RW, 0, len)),
                Err(NoRoom) => return Next::NoRoom,
            }
            if self.down != self.down_told {
                self.down_told = self.down;
                if self.down == shutdown::BOTH {
                    self.deadline = Instant::now().checked_add(linger);
                }
                (op::SHUTDOWN, self.down, 0)
            } else if self.has_data() && !self.credit_asked {
                self.credit_asked = true;
                (op::CREDIT_REQUEST, 0, 0)
            } else if credit || self.has_room_to_tell() {
                (op::CREDIT_UPDATE, 0, 0)
            } else {
                return Next::Nothing;
            }
        };
        Next::Packet(self.header(cid, op, flags, len))
    }

    /// Reads as much as the guest may be sent.
    fn read(&mut self, data: &mut Buffers) -> Result<u32, NoRoom> {
        let credit = self.credit();
        let Some(stream) = self
            .stream
            .as_ref()
            .filter(|_| self.has_data() && credit > 0)
        else {
            return Ok(0);
        };
        if data.left() == 0 {
            return Err(NoRoom);
        }
        data.truncate(credit as usize);
        match stream.receive(data) {
            Ok(count) if count > 0 => {
                // At most the credit.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            // It has ended, or is gone without having read everything.
            Ok(_) => self.end_of_data(self.gone),
            Err(_) => self.end_of_data(true),
        }
        Ok(0)
    }

    fn end_of_data(&mut self, gone: bool) {
        self.ended = true;
        self.down |= match gone || self.write_ended {
            true => shutdown::BOTH,
            false => shutdown::SEND,
        };
    }

    fn header(&mut self, cid: u64, op: u16, flags: u32, len: u32) -> Header {
        // Every packet says so.
        self.forwarded_told = self.forwarded;
        self.owed.credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }

    /// Bytes of the guest that wait for the socket.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::len)
    }
}

/// There is data, and no room for it.
struct NoRoom;
