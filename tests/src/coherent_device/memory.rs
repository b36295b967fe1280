//! Memory of the device itself: a file that clients map.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Where unnamed files are in memory.
const MEMORY_FILES: &str = "/dev/shm";

/// Memory behind a BAR.
pub struct DeviceMemory {
    file: File,
    usable: u64,
    bar_size: u64,
}

impl DeviceMemory {
    /// `usable` bytes of zeros behind a BAR of `bar_size`, in a new file at `path` or in one without
    /// a name.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(path: Option<&Path>, usable: u64, bar_size: u64) -> io::Result<Self> {
        let file = match path {
            Some(path) => File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?,
            None => tempfile::tempfile_in(MEMORY_FILES)?,
        };
        file.set_len(usable)?;
        Ok(Self {
            file,
            usable,
            bar_size,
        })
    }

    /// What clients map.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Bytes that are memory, from the start of the BAR.
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Bytes of the BAR.
    pub fn bar_size(&self) -> u64 {
        self.bar_size
    }

    /// Takes all memory away, from those too who have it mapped.
    ///
    /// # Errors
    /// The file cannot be truncated.
    pub fn shrink(&mut self) -> io::Result<()> {
        self.usable = 0;
        self.file.set_len(0)
    }

    /// Reads through the BAR: beyond what is memory there are ones.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0xff);
        let length = self.length_at(offset, data.len());
        self.file.read_exact_at(&mut data[..length], offset)
    }

    /// Writes through the BAR: what is beyond what is memory is lost.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_bar(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = self.length_at(offset, data.len());
        self.file.write_all_at(&data[..length], offset)
    }

    /// Reads memory.
    ///
    /// # Errors
    /// Not all of it is there.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        self.file.read_exact_at(data, offset)
    }

    /// Writes memory.
    ///
    /// # Errors
    /// Not all of it is there.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        self.file.write_all_at(data, offset)
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        if self.length_at(offset, length) == length {
            return Ok(());
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// How many of `length` bytes from `offset` are memory.
    fn length_at(&self, offset: u64, length: usize) -> usize {
        let left = self.usable.saturating_sub(offset);
        usize::try_from(left).map_or(length, |left| left.min(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_what_is_usable_are_ones() {
        let memory = DeviceMemory::new(None, 8192, 16384).unwrap();
        memory.write_bar(8190, &[1, 2, 3, 4]).unwrap();
        let mut data = [0; 4];
        memory.read_bar(8190, &mut data).unwrap();
        assert_eq!(data, [1, 2, 0xff, 0xff]);
        memory.read_bar(u64::MAX, &mut data).unwrap();
        assert_eq!(data, [0xff; 4]);
        memory.read(8188, &mut data).unwrap();
        assert_eq!(data, [0, 0, 1, 2]);
        assert!(memory.read(8189, &mut data).is_err());
        assert!(memory.write(8189, &data).is_err());
        assert!(memory.write(u64::MAX, &data).is_err());
    }

    #[test]
    fn after_it_shrank_there_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let mut memory = DeviceMemory::new(Some(&path), 8192, 8192).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 8192);
        memory.shrink().unwrap();
        memory.write_bar(0, &[1]).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 0);
        let mut data = [0; 2];
        memory.read_bar(0, &mut data).unwrap();
        assert_eq!(data, [0xff; 2]);
        assert!(memory.read(0, &mut data).is_err());
    }
}
