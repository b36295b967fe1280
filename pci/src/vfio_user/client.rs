//! A device in another process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::DEADLINE;
use super::connection::{Connection, Turn};
use super::description::{self, Description, Limits};
use super::error::{ConnectError, Failure, Violation};
use super::sys::{self, Deadline};
use super::wire::{Command, DmaMap, DmaUnmap, RegionAccess, SetIrqs, argsz, dma};
use crate::device::{Device, DeviceError, DeviceRegion, IrqKind};
use crate::machine::{DmaArea, DmaTarget};

/// A PCI device that a vfio-user server offers.
///
/// One request is under way at a time. Once the server breaks the protocol, hangs up or does not
/// answer, it is done with: the socket is shut down, and every call fails with
/// [`DeviceError::Lost`] and the first reason.
///
/// A server may send commands only to reach guest memory without mapping it. They are refused when
/// they are met, which is while an answer is awaited.
#[derive(Debug)]
pub struct Client {
    pub(super) connection: Connection,
    limits: Limits,
    description: Description,
}

/// What a region is that a device does not have.
static ABSENT: DeviceRegion = DeviceRegion {
    size: 0,
    readable: false,
    writable: false,
    mappable: Vec::new(),
    sparse: false,
};

impl Client {
    /// Connects to a server and finds out what its device is. Takes no longer than [`DEADLINE`].
    ///
    /// # Errors
    /// Any [`ConnectError`].
    pub fn connect(path: &Path) -> Result<Self, ConnectError> {
        Self::connect_within(path, DEADLINE)
    }

    /// The same with another deadline, for this and for all later calls.
    pub(super) fn connect_within(path: &Path, limit: Duration) -> Result<Self, ConnectError> {
        let deadline = Deadline::after(limit);
        let socket = sys::connect(path, &deadline).map_err(|source| {
            let path = path.to_owned();
            ConnectError::Socket { path, source }
        })?;
        Self::over(socket, path, deadline)
    }

    /// The same over a socket that is connected.
    pub(super) fn over(
        socket: UnixStream,
        path: &Path,
        deadline: Deadline,
    ) -> Result<Self, ConnectError> {
        let connection = Connection::new(socket, deadline.limit).map_err(|source| {
            let path = path.to_owned();
            ConnectError::Socket { path, source }
        })?;
        let (limits, description) = connection
            .call_by(deadline, |turn| {
                let limits = description::negotiate(turn)?;
                Ok((limits, description::describe(turn)?))
            })
            .map_err(|failure| ConnectError::new(path, failure))?;
        Ok(Self {
            connection,
            limits,
            description,
        })
    }

    /// Whether the server is still there, as far as can be told without asking it.
    ///
    /// To be called when polling the socket ([`AsFd`]) says that the other end was closed
    /// (`EPOLLRDHUP`, `EPOLLHUP`).
    ///
    /// # Errors
    /// [`DeviceError::Lost`] with the reason.
    pub fn check(&self) -> Result<(), DeviceError> {
        self.connection.check()
    }

    fn call<T>(
        &self,
        call: impl FnOnce(&mut Turn<'_>) -> Result<T, Failure>,
    ) -> Result<T, DeviceError> {
        self.connection.call(call).map_err(DeviceError::from)
    }

    /// Refuses accesses that the device does not have.
    fn check_access(
        &self,
        index: u32,
        offset: u64,
        length: usize,
        what: &str,
        allowed: impl FnOnce(&DeviceRegion) -> bool,
    ) -> Result<(), DeviceError> {
        let region = self.region(index);
        let end = u64::try_from(length)
            .ok()
            .and_then(|length| offset.checked_add(length));
        if end.is_some_and(|end| end <= region.size) && allowed(region) {
            return Ok(());
        }
        Err(refusal(format!(
            "region {index} of {:#x} bytes has no {length:#x} bytes at {offset:#x} that can be {what}",
            region.size
        )))
    }
}

impl ConnectError {
    fn new(path: &Path, failure: Failure) -> Self {
        let path = path.to_owned();
        if let Failure::Refused { request, source } = failure {
            return Self::Refused {
                path,
                request,
                source,
            };
        }
        let (DeviceError::Lost(source) | DeviceError::Refused(source)) = failure.into();
        Self::Unusable { path, source }
    }
}

impl AsFd for Client {
    /// The socket, to be polled for the end of the connection and for nothing else.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket().as_fd()
    }
}

fn refusal(reason: String) -> DeviceError {
    DeviceError::Refused(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Where part `number` of an access is, if all before it have `size` bytes.
fn part(index: u32, offset: u64, number: usize, size: usize, length: usize) -> RegionAccess {
    RegionAccess {
        // Inside the region, as the whole access is; a part is no longer than a message.
        offset: offset.saturating_add((number as u64).saturating_mul(size as u64)),
        region: index,
        count: u32::try_from(length).unwrap_or(u32::MAX),
    }
}

/// The beginning of the answer to an access must say what was accessed.
fn check_answer(asked: &RegionAccess, answer: &[u8]) -> Result<(), Violation> {
    let told = RegionAccess::read_from_prefix(answer)
        .map_or_else(|_| RegionAccess::default(), |(told, _)| told);
    if told == *asked {
        return Ok(());
    }
    Err(Violation::OtherAccess {
        asked_region: asked.region,
        asked_offset: asked.offset,
        asked_count: asked.count,
        region: told.region,
        offset: told.offset,
        count: told.count,
    })
}

/// Sends one `VFIO_USER_DEVICE_SET_IRQS`.
fn set(
    turn: &mut Turn<'_>,
    kind: IrqKind,
    flags: u32,
    (start, count): (u32, u32),
    events: &[RawFd],
) -> Result<(), Failure> {
    let request = SetIrqs {
        argsz: argsz::<SetIrqs>(),
        flags,
        index: kind.index(),
        start,
        count,
    };
    turn.ask(
        Command::DeviceSetIrqs,
        [request.as_bytes(), &[]],
        events,
        0..=0,
    )?;
    Ok(())
}

/// Turns off all interrupts of a kind: "a count (and start) of 0, with data flags of
/// `VFIO_IRQ_SET_DATA_NONE`".
fn turn_off(turn: &mut Turn<'_>, kind: IrqKind) -> Result<(), Failure> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(turn, kind, flags, (0, 0), &[])
}

/// Events that are next to each other, up to `most` at a time, and the number of the first of each.
fn runs(events: &[Option<&EventFd>], most: usize) -> Vec<(u32, Vec<RawFd>)> {
    let mut runs: Vec<(u32, Vec<RawFd>)> = Vec::new();
    let mut adjacent = false;
    for (event, number) in events.iter().zip(0..) {
        let Some(event) = event else {
            adjacent = false;
            continue;
        };
        match runs.last_mut() {
            Some((_, run)) if adjacent && run.len() < most => run.push(event.as_raw_fd()),
            _ => runs.push((number, vec![event.as_raw_fd()])),
        }
        adjacent = true;
    }
    runs
}

impl Device for Client {
    fn region(&self, index: u32) -> &DeviceRegion {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.description.regions.get(index))
            .unwrap_or(&ABSENT)
    }

    fn irqs(&self, kind: IrqKind) -> u32 {
        let [intx, msi, msix] = self.description.irqs;
        match kind {
            IrqKind::Intx => intx,
            IrqKind::Msi => msi,
            IrqKind::Msix => msix,
        }
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.check_access(region, offset, data.len(), "read", |region| region.readable)?;
        let size = self.limits.transfer;
        self.call(|turn| {
            for (number, data) in data.chunks_mut(size).enumerate() {
                let request = part(region, offset, number, size, data.len());
                let length = size_of::<RegionAccess>() + data.len();
                let answer = turn.ask(
                    Command::RegionRead,
                    [request.as_bytes(), &[]],
                    &[],
                    length..=length,
                )?;
                check_answer(&request, &answer)?;
                if let Some(read) = answer.get(size_of::<RegionAccess>()..) {
                    data.copy_from_slice(read);
                }
            }
            Ok(())
        })
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.check_access(region, offset, data.len(), "written", |region| {
            region.writable
        })?;
        let size = self.limits.transfer;
        self.call(|turn| {
            for (number, data) in data.chunks(size).enumerate() {
                let request = part(region, offset, number, size, data.len());
                let length = size_of::<RegionAccess>();
                let answer = turn.ask(
                    Command::RegionWrite,
                    [request.as_bytes(), data],
                    &[],
                    length..=length,
                )?;
                check_answer(&request, &answer)?;
            }
            Ok(())
        })
    }

    fn set_irqs(&self, kind: IrqKind, events: &[Option<&EventFd>]) -> Result<(), DeviceError> {
        let available = self.irqs(kind);
        if events.len() > available as usize {
            return Err(refusal(format!(
                "it has {available} interrupts of kind {kind:?}, not {}",
                events.len()
            )));
        }
        if available == 0 {
            return Ok(());
        }
        self.call(|turn| {
            // What was set would stay where the new list has nothing, and descriptors cannot be -1.
            turn_off(turn, kind)?;
            let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
            for (start, run) in runs(events, self.limits.descriptors) {
                // No longer than a message.
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let result = set(turn, kind, flags, (start, count), &run);
                if let Err(refused @ Failure::Refused { .. }) = result {
                    // A list is set as a whole or not at all.
                    turn_off(turn, kind)?;
                    return Err(refused);
                }
                result?;
            }
            Ok(())
        })
    }

    fn unmask_intx_on(&self, event: &EventFd) -> Result<(), DeviceError> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        let events = [event.as_raw_fd()];
        self.call(|turn| set(turn, IrqKind::Intx, flags, (0, 1), &events))
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
        self.call(|turn| set(turn, IrqKind::Intx, flags, (0, 1), &[]))
    }

    fn can_reset(&self) -> bool {
        self.description.can_reset
    }

    fn reset(&self) -> Result<(), DeviceError> {
        if !self.can_reset() {
            let reason = "the vfio-user server does not offer to reset its device";
            let error = io::Error::new(io::ErrorKind::Unsupported, reason);
            return Err(DeviceError::Refused(error));
        }
        self.call(|turn| turn.ask(Command::DeviceReset, [&[], &[]], &[], 0..=0))?;
        Ok(())
    }
}

impl DmaTarget for Client {
    fn map(&self, area: &DmaArea) -> io::Result<()> {
        let DmaArea {
            gpa,
            size,
            host_address: _,
            file,
            writable,
        } = area;
        let Some((file, offset)) = file else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the {size:#x} bytes of guest memory at {gpa:#x} are private to this process; a \
                     vfio-user device needs memory that is shared (`--memory shared=on`)"
                ),
            ));
        };
        let request = DmaMap {
            argsz: argsz::<DmaMap>(),
            flags: dma::READABLE | if *writable { dma::WRITABLE } else { 0 },
            offset: *offset,
            address: *gpa,
            size: *size,
        };
        self.call(|turn| {
            turn.ask(
                Command::DmaMap,
                [request.as_bytes(), &[]],
                &[file.as_raw_fd()],
                0..=0,
            )
        })?;
        Ok(())
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        let request = DmaUnmap {
            argsz: argsz::<DmaUnmap>(),
            flags: 0,
            address: gpa,
            size,
        };
        let length = size_of::<DmaUnmap>();
        self.call(|turn| {
            let answer = turn.ask(
                Command::DmaUnmap,
                [request.as_bytes(), &[]],
                &[],
                length..=length,
            )?;
            let told = DmaUnmap::read_from_bytes(&answer).unwrap_or_default();
            if (told.address, told.size) != (gpa, size) {
                return Err(Violation::OtherUnmap {
                    asked_address: gpa,
                    asked_size: size,
                    address: told.address,
                    size: told.size,
                }
                .into());
            }
            Ok(())
        })?;
        Ok(())
    }
}
