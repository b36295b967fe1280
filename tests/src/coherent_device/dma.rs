//! The device's DMA engine: copies between the guest's memory, as far as the client lets the device
//! reach it, and the device's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use vfio_user::DmaMapFlags;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory as _};

use super::memory::DeviceMemory;
use super::registers::LOCAL;

/// The longest copy: the client waits for it.
const MAX_LENGTH: u64 = 256 << 20;
/// Copied at once.
const CHUNK: u64 = 64 << 10;

/// A copy that was asked for. Addresses are guest-physical, or with [`LOCAL`] offsets in the
/// device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where from.
    pub source: u64,
    /// Where to.
    pub destination: u64,
    /// Bytes.
    pub length: u64,
}

/// How a copy went, as the control register reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// There was none since the reset.
    Idle = 0,
    /// It was copied.
    Done = 1,
    /// Part of the source is not there or may not be read.
    NoSource = 2,
    /// Part of the destination is not there or may not be written.
    NoDestination = 3,
    /// More than 256 MiB.
    TooLong = 4,
    /// Bus mastering is off.
    NoBusMaster = 5,
}

/// Memory that the client lets the device reach.
#[derive(Default)]
pub struct GuestMemory {
    areas: BTreeMap<u64, Area>,
}

struct Area {
    size: u64,
    /// Absent if the client cannot share it: we do not send it messages for each access.
    mapping: Option<MmapRegion>,
    flags: DmaMapFlags,
}

impl GuestMemory {
    /// Lets the device reach `size` bytes at `address`, which are at `offset` in `file`.
    ///
    /// # Errors
    /// The area is none, overlaps another or cannot be mapped.
    pub fn map(
        &mut self,
        flags: DmaMapFlags,
        address: u64,
        size: u64,
        file: Option<(File, u64)>,
    ) -> io::Result<()> {
        let end = address
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let before = self.areas.range(..end).next_back();
        if before.is_some_and(|(start, area)| start + area.size > address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mapping = match file {
            Some((file, offset)) => Some(map(flags, size, file, offset)?),
            None => None,
        };
        let area = Area {
            size,
            mapping,
            flags,
        };
        self.areas.insert(address, area);
        Ok(())
    }

    /// Takes an area away, as it was mapped.
    ///
    /// # Errors
    /// There is no such area.
    pub fn unmap(&mut self, address: u64, size: u64) -> io::Result<()> {
        if self
            .areas
            .get(&address)
            .is_none_or(|area| area.size != size)
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.areas.remove(&address);
        Ok(())
    }

    /// Takes all areas away.
    pub fn clear(&mut self) {
        self.areas.clear();
    }

    fn read(&self, address: u64, data: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let (area, offset) = self.area_at(address, done)?;
            let part = area.part(offset, data.len() - done, DmaMapFlags::READ)?;
            done += part.copy_to(&mut data[done..]);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let (area, offset) = self.area_at(address, done)?;
            let part = area.part(offset, data.len() - done, DmaMapFlags::WRITE)?;
            part.copy_from(&data[done..]);
            done += part.len();
        }
        Ok(())
    }

    /// The area that has the byte `distance` after `address`, and where in it.
    fn area_at(&self, address: u64, distance: usize) -> io::Result<(&Area, u64)> {
        address
            .checked_add(distance as u64)
            .and_then(|address| {
                let (start, area) = self.areas.range(..=address).next_back()?;
                Some((area, address - start))
            })
            .filter(|(area, offset)| *offset < area.size)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Area {
    /// At most `length` bytes from `offset`, which is inside, for an access as `flags` say.
    fn part(
        &self,
        offset: u64,
        length: usize,
        flags: DmaMapFlags,
    ) -> io::Result<vm_memory::VolatileSlice<'_>> {
        let mapping = self
            .mapping
            .as_ref()
            .filter(|_| self.flags.contains(flags))
            .ok_or(io::ErrorKind::PermissionDenied)?;
        let offset = offset as usize;
        let length = length.min(mapping.size().saturating_sub(offset));
        mapping.get_slice(offset, length).map_err(io::Error::other)
    }
}

fn map(flags: DmaMapFlags, size: u64, file: File, offset: u64) -> io::Result<MmapRegion> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mut protection = libc::PROT_NONE;
    if flags.contains(DmaMapFlags::READ) {
        protection |= libc::PROT_READ;
    }
    if flags.contains(DmaMapFlags::WRITE) {
        protection |= libc::PROT_WRITE;
    }
    MmapRegion::build(
        Some(FileOffset::new(file, offset)),
        size,
        protection,
        libc::MAP_SHARED | libc::MAP_NORESERVE,
    )
    .map_err(io::Error::other)
}

/// Copies from the lowest address upwards. What was copied before something went wrong stays.
pub fn copy(request: Request, guest: &GuestMemory, own: Option<&DeviceMemory>) -> Status {
    let Request {
        source,
        destination,
        length,
    } = request;
    if length > MAX_LENGTH {
        return Status::TooLong;
    }
    let mut buffer = vec![0; CHUNK.min(length) as usize];
    let mut done = 0;
    while done < length {
        let chunk = &mut buffer[..(length - done).min(CHUNK) as usize];
        if read(source, done, chunk, guest, own).is_err() {
            return Status::NoSource;
        }
        if write(destination, done, chunk, guest, own).is_err() {
            return Status::NoDestination;
        }
        done += chunk.len() as u64;
    }
    Status::Done
}

fn read(
    address: u64,
    distance: u64,
    data: &mut [u8],
    guest: &GuestMemory,
    own: Option<&DeviceMemory>,
) -> io::Result<()> {
    match place(address, distance)? {
        Place::Own(offset) => own.ok_or(io::ErrorKind::NotFound)?.read(offset, data),
        Place::Guest(address) => guest.read(address, data),
    }
}

fn write(
    address: u64,
    distance: u64,
    data: &[u8],
    guest: &GuestMemory,
    own: Option<&DeviceMemory>,
) -> io::Result<()> {
    match place(address, distance)? {
        Place::Own(offset) => own.ok_or(io::ErrorKind::NotFound)?.write(offset, data),
        Place::Guest(address) => guest.write(address, data),
    }
}

enum Place {
    Own(u64),
    Guest(u64),
}

/// What an address means, `distance` bytes after it: a copy never goes from one of the two kinds of
/// addresses to the other.
fn place(address: u64, distance: u64) -> io::Result<Place> {
    let at = (address & !LOCAL) + distance;
    if at & LOCAL != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(if address & LOCAL != 0 {
        Place::Own(at)
    } else {
        Place::Guest(at)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const RW: DmaMapFlags = DmaMapFlags::READ_WRITE;

    /// A file whose bytes tell where they are.
    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<_> = (0..size).map(|at| (at % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    fn map(
        memory: &mut GuestMemory,
        flags: DmaMapFlags,
        address: u64,
        size: u64,
        file: &File,
        offset: u64,
    ) -> io::Result<()> {
        memory.map(flags, address, size, Some((file.try_clone()?, offset)))
    }

    fn request(source: u64, destination: u64, length: u64) -> Request {
        Request {
            source,
            destination,
            length,
        }
    }

    fn bytes(file: &File, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    #[test]
    fn copies_between_the_guest_and_its_own_memory() {
        let ram = file(0x20_0000);
        let mut guest = GuestMemory::default();
        map(&mut guest, RW, 0x8000_0000, 0x10_0000, &ram, 0x10_0000).unwrap();
        let own = DeviceMemory::new(None, 0x10_0000, 0x10_0000).unwrap();

        // Longer than a chunk, and nothing is aligned.
        let length = CHUNK + 4321;
        let there = request(0x8000_0123, LOCAL | 0x777, length);
        assert_eq!(copy(there, &guest, Some(&own)), Status::Done);
        let mut copied = vec![0; length as usize];
        own.read(0x777, &mut copied).unwrap();
        assert_eq!(copied, bytes(&ram, 0x10_0123, length as usize));

        own.write(0x10, b"from the device").unwrap();
        let back = request(LOCAL | 0x10, 0x8000_0000, 15);
        assert_eq!(copy(back, &guest, Some(&own)), Status::Done);
        assert_eq!(bytes(&ram, 0x10_0000, 15), b"from the device");
        assert_eq!(bytes(&ram, 0x10_000f, 1), [(0x10_000f % 251) as u8]);

        let inside = request(LOCAL | 0x10, LOCAL | 0x8_0000, 4);
        assert_eq!(copy(inside, &guest, Some(&own)), Status::Done);
        own.read(0x8_0000, &mut copied[..4]).unwrap();
        assert_eq!(&copied[..4], b"from");
    }

    #[test]
    fn areas_that_follow_each_other_are_one() {
        let (low, high) = (file(0x2000), file(0x2000));
        let mut guest = GuestMemory::default();
        map(&mut guest, RW, 0x1000, 0x1000, &low, 0).unwrap();
        map(&mut guest, RW, 0x2000, 0x1000, &high, 0x1000).unwrap();
        let own = DeviceMemory::new(None, 0x10000, 0x10000).unwrap();
        own.write(0, &[0xaa; 0x20]).unwrap();
        assert_eq!(
            copy(request(LOCAL, 0x1ff0, 0x20), &guest, Some(&own)),
            Status::Done
        );
        assert_eq!(bytes(&low, 0xff0, 0x10), [0xaa; 0x10]);
        assert_eq!(bytes(&high, 0x1000, 0x10), [0xaa; 0x10]);
        assert_eq!(
            copy(request(0x1ff0, LOCAL | 0x100, 0x20), &guest, Some(&own)),
            Status::Done
        );
    }

    #[test]
    fn what_cannot_be_reached_is_said() {
        let ram = file(0x2000);
        let mut guest = GuestMemory::default();
        map(&mut guest, RW, 0x1000, 0x1000, &ram, 0).unwrap();
        map(&mut guest, DmaMapFlags::READ, 0x3000, 0x1000, &ram, 0).unwrap();
        guest.map(RW, 0x5000, 0x1000, None).unwrap();
        let own = DeviceMemory::new(None, 0x10000, 0x10000).unwrap();
        let status = |source, destination, length| {
            copy(request(source, destination, length), &guest, Some(&own))
        };
        // Past the end, before the start, in the gap, not shared, not writable.
        assert_eq!(status(0x1ff0, LOCAL, 0x11), Status::NoSource);
        assert_eq!(status(0xfff, LOCAL, 1), Status::NoSource);
        assert_eq!(status(LOCAL, 0x2000, 1), Status::NoDestination);
        assert_eq!(status(LOCAL, 0x5000, 1), Status::NoDestination);
        assert_eq!(status(LOCAL, 0x3000, 1), Status::NoDestination);
        assert_eq!(status(0x3000, LOCAL, 1), Status::Done);
        // Its own memory ends too, and no address leads from one kind to the other.
        assert_eq!(status(LOCAL | 0xffff, LOCAL, 2), Status::NoSource);
        assert_eq!(status(u64::MAX, LOCAL, 2), Status::NoSource);
        assert_eq!(status(LOCAL - 1, LOCAL, 2), Status::NoSource);
        assert_eq!(status(0x1000, LOCAL, MAX_LENGTH + 1), Status::TooLong);
        assert_eq!(status(0, 0, u64::MAX), Status::TooLong);
        assert_eq!(status(0, 0, 0), Status::Done);
        assert_eq!(
            copy(request(LOCAL, 0x1000, 1), &guest, None),
            Status::NoSource
        );
    }

    #[test]
    fn areas_come_and_go_as_they_are() {
        let ram = file(0x4000);
        let mut guest = GuestMemory::default();
        map(&mut guest, RW, 0x1000, 0x2000, &ram, 0).unwrap();
        let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
        for (address, size) in [(0x2000, 0x1000), (0, 0x1001), (0, 0x8000), (0x2fff, 1)] {
            assert_eq!(
                kind(map(&mut guest, RW, address, size, &ram, 0)),
                Err(io::ErrorKind::AlreadyExists),
                "{address:#x}"
            );
        }
        for (address, size) in [(0x8000, 0), (u64::MAX, 2)] {
            assert_eq!(
                kind(map(&mut guest, RW, address, size, &ram, 0)),
                Err(io::ErrorKind::InvalidInput)
            );
        }
        for (address, size) in [(0x1000, 0x1000), (0x2000, 0x1000)] {
            assert_eq!(
                kind(guest.unmap(address, size)),
                Err(io::ErrorKind::NotFound)
            );
        }
        guest.unmap(0x1000, 0x2000).unwrap();
        map(&mut guest, RW, 0x2000, 0x1000, &ram, 0).unwrap();
        guest.clear();
        map(&mut guest, RW, 0x1000, 0x2000, &ram, 0).unwrap();
    }
}
