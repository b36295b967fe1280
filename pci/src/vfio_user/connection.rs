//! Requests and answers, one at a time, until the server does something it must not.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use zerocopy::IntoBytes;

use super::error::{Failure, Violation};
use super::sys::{self, Deadline, SocketError};
use super::wire::{Command, Header, flags};
use crate::device::DeviceError;

/// Bytes of data that go into one message, at most: what a peer may send if nothing else is said.
pub const MAX_TRANSFER: u32 = 1 << 20;

/// Commands of its own that a server may send instead of an answer. Each is refused.
const MAX_COMMANDS: u32 = 64;

/// Largest errno of Linux.
const MAX_ERRNO: i32 = 4095;

/// Bytes of the structure before the data of `VFIO_USER_DMA_READ` and `_WRITE`.
const DMA_ACCESS_SIZE: usize = 16;

/// A connection to a server, which several threads share.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// How long a call may take.
    pub(super) limit: Duration,
    /// The next message's id; `None` while a call is under way.
    pub(super) idle: Mutex<Option<u16>>,
    became_idle: Condvar,
    lost: OnceLock<Arc<Violation>>,
}

impl Connection {
    /// A connection whose calls take no longer than `limit`.
    ///
    /// # Errors
    /// The socket cannot be set up.
    pub fn new(socket: UnixStream, limit: Duration) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            limit,
            idle: Mutex::new(Some(0)),
            became_idle: Condvar::new(),
            lost: OnceLock::new(),
        })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Lets `call` exchange messages, alone, once it is its turn.
    pub fn call<T>(
        &self,
        call: impl FnOnce(&mut Turn<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.call_by(Deadline::after(self.limit), call)
    }

    /// The same with a deadline that is set.
    pub fn call_by<T>(
        &self,
        deadline: Deadline,
        call: impl FnOnce(&mut Turn<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut turn = self.turn(deadline)?;
        let result = call(&mut turn);
        if let Err(Failure::Broken(violation)) = result {
            return Err(self.end(violation));
        }
        result
    }

    fn turn(&self, deadline: Deadline) -> Result<Turn<'_>, Failure> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(violation) = self.lost.get() {
                return Err(Failure::Lost(Arc::clone(violation)));
            }
            if let Some(id) = idle.take() {
                return Ok(Turn {
                    connection: self,
                    id,
                    deadline,
                });
            }
            let Some(left) = deadline.left() else {
                let limit = deadline.limit;
                return Err(self.end(Violation::Busy { limit }));
            };
            idle = self
                .became_idle
                .wait_timeout(idle, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends the connection. If it had ended before, the first reason counts.
    fn end(&self, violation: Violation) -> Failure {
        let first = self.lost.get_or_init(|| Arc::new(violation));
        // Whoever waits for an answer is woken up. The peer may have been faster.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        Failure::Lost(Arc::clone(first))
    }

    /// Whether the server is still there.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] if it is not.
    pub fn check(&self) -> Result<(), DeviceError> {
        let lost = match self.lost.get() {
            Some(violation) => Failure::Lost(Arc::clone(violation)),
            None if sys::hung_up(&self.socket) => self.end(Violation::HungUp),
            None => return Ok(()),
        };
        Err(lost.into())
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// What follows the header; as long as was allowed.
    pub payload: Vec<u8>,
    /// A descriptor that came along.
    pub descriptor: Option<OwnedFd>,
}

impl Answer {
    /// The payload of an answer that carries no descriptor.
    ///
    /// # Errors
    /// There is one.
    fn without_descriptor(self, command: Command) -> Result<Vec<u8>, Failure> {
        if self.descriptor.is_some() {
            let message = command.name();
            return Err(Violation::UnexpectedDescriptor { message }.into());
        }
        Ok(self.payload)
    }
}

/// The time in which one thread alone may exchange messages with the server.
#[derive(Debug)]
pub struct Turn<'a> {
    connection: &'a Connection,
    /// The next message's id.
    id: u16,
    deadline: Deadline,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut idle = self
            .connection
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *idle = Some(self.id);
        drop(idle);
        // Of those who wait, one has its turn; at the end of the connection none has one.
        match self.connection.lost.get() {
            None => self.connection.became_idle.notify_one(),
            Some(_) => self.connection.became_idle.notify_all(),
        }
    }
}

impl Turn<'_> {
    /// Sends a request, whose body is `parts`, and waits for the answer, whose payload has as many
    /// bytes as `expected` says. It carries no descriptor.
    pub fn ask(
        &mut self,
        command: Command,
        parts: [&[u8]; 2],
        descriptors: &[RawFd],
        expected: RangeInclusive<usize>,
    ) -> Result<Vec<u8>, Failure> {
        self.ask_for_descriptor(command, parts, descriptors, expected)?
            .without_descriptor(command)
    }

    /// The same for an answer that may carry a descriptor.
    pub fn ask_for_descriptor(
        &mut self,
        command: Command,
        [body, data]: [&[u8]; 2],
        descriptors: &[RawFd],
        expected: RangeInclusive<usize>,
    ) -> Result<Answer, Failure> {
        let id = self.id;
        self.id = id.wrapping_add(1);
        let size = size_of::<Header>() + body.len() + data.len();
        let header = Header {
            id,
            command: command.number(),
            // Callers keep to `MAX_TRANSFER`.
            size: u32::try_from(size).unwrap_or(u32::MAX),
            flags: flags::COMMAND,
            error: 0,
        };
        sys::send(
            &self.connection.socket,
            &[header.as_bytes(), body, data],
            descriptors,
            &self.deadline,
        )
        .map_err(|error| self.violation(command, error))?;

        for _ in 0..=MAX_COMMANDS {
            let mut descriptors = Vec::new();
            let header = self.receive_header(command, &mut descriptors)?;
            if header.flags & flags::TYPE == flags::COMMAND {
                self.refuse_command(command, &header, descriptors)?;
                continue;
            }
            return self.receive_answer(command, id, &header, descriptors, expected);
        }
        Err(Violation::TooManyCommands {
            request: command.name(),
            count: MAX_COMMANDS + 1,
        }
        .into())
    }

    fn receive_header(
        &self,
        command: Command,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Header, Failure> {
        let mut header = Header::default();
        self.receive(command, header.as_mut_bytes(), descriptors)?;
        Ok(header)
    }

    fn receive_answer(
        &self,
        command: Command,
        id: u16,
        header: &Header,
        mut descriptors: Vec<OwnedFd>,
        expected: RangeInclusive<usize>,
    ) -> Result<Answer, Failure> {
        let request = command.name();
        let answers = header.flags & flags::TYPE == flags::REPLY
            && header.flags & !(flags::TYPE | flags::ERROR) == 0;
        if !answers {
            let flags = header.flags;
            return Err(Violation::Flags { request, flags }.into());
        }
        if (header.id, header.command) != (id, command.number()) {
            return Err(Violation::WrongMessage {
                request,
                expected_id: id,
                id: header.id,
                command: header.command,
            }
            .into());
        }
        let failed = header.flags & flags::ERROR != 0;
        let expected = if failed { 0..=0 } else { expected };
        let length = payload_length(header)
            .filter(|length| expected.contains(length))
            .ok_or(Violation::Size {
                request,
                size: header.size,
                least: size_of::<Header>() + expected.start(),
                most: size_of::<Header>() + expected.end(),
            })?;
        if failed {
            if !descriptors.is_empty() {
                return Err(Violation::UnexpectedDescriptor { message: request }.into());
            }
            let source = error_of(header.error);
            return Err(Failure::Refused { request, source });
        }
        let mut payload = vec![0; length];
        self.receive(command, &mut payload, &mut descriptors)?;
        Ok(Answer {
            payload,
            descriptor: descriptors.pop(),
        })
    }

    /// Answers a command of the server. It may only want to reach guest memory through us, which it
    /// can do itself.
    fn refuse_command(
        &self,
        waiting_for: Command,
        header: &Header,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let ours = [Command::DmaRead, Command::DmaWrite];
        let Some(command) = ours
            .into_iter()
            .find(|command| command.number() == header.command)
        else {
            let command = header.command;
            return Err(Violation::NotItsCommand { command }.into());
        };
        let most = DMA_ACCESS_SIZE + MAX_TRANSFER as usize;
        let mut length = payload_length(header)
            .filter(|length| (DMA_ACCESS_SIZE..=most).contains(length))
            .filter(|_| header.flags & !flags::NO_REPLY == flags::COMMAND)
            .ok_or(Violation::BadCommand {
                size: header.size,
                flags: header.flags,
            })?;
        let mut ignored = [0; 4096];
        while length > 0 {
            let taken = length.min(ignored.len());
            if let Some(ignored) = ignored.get_mut(..taken) {
                self.receive(waiting_for, ignored, &mut descriptors)?;
            }
            length -= taken;
        }
        if !descriptors.is_empty() {
            let message = command.name();
            return Err(Violation::UnexpectedDescriptor { message }.into());
        }
        if header.flags & flags::NO_REPLY != 0 {
            return Ok(());
        }
        let answer = Header {
            id: header.id,
            command: header.command,
            size: size_of::<Header>() as u32,
            flags: flags::REPLY | flags::ERROR,
            error: libc::ENOTSUP as u32,
        };
        sys::send(
            &self.connection.socket,
            &[answer.as_bytes()],
            &[],
            &self.deadline,
        )
        .map_err(|error| self.violation(waiting_for, error))
    }

    fn receive(
        &self,
        command: Command,
        buffer: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        sys::receive(&self.connection.socket, buffer, descriptors, &self.deadline)
            .map_err(|error| self.violation(command, error))
    }

    fn violation(&self, command: Command, error: SocketError) -> Failure {
        let violation = match error {
            SocketError::HungUp => Violation::HungUp,
            SocketError::Late => Violation::Late {
                request: command.name(),
                limit: self.deadline.limit,
            },
            SocketError::TooManyDescriptors => Violation::TooManyDescriptors,
            SocketError::Other(source) => Violation::Socket(source),
        };
        violation.into()
    }
}

/// Bytes that follow a header, as it says itself.
fn payload_length(header: &Header) -> Option<usize> {
    usize::try_from(header.size)
        .ok()?
        .checked_sub(size_of::<Header>())
}

/// The error that an answer states. It may state none, and anything that is none.
fn error_of(errno: u32) -> io::Error {
    match i32::try_from(errno) {
        Ok(0) => io::Error::other("the vfio-user server does not say why"),
        Ok(errno @ 1..=MAX_ERRNO) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(format!("the vfio-user server says error {errno:#x}")),
    }
}
