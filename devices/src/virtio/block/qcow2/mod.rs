//! A qcow2 image, and the files that it is based on.
//!
//! | | |
//! |---|---|
//! | `header` | what an image says of itself, looked at before the crate `imago` reads it |
//! | `chain` | its files, opened by us: a header opens nothing |
//! | `storage` | how `imago` reads and writes tables: in an order that survives |
//! | `flight` | what is read and written in place right now |
//!
//! Reads, and writes to clusters that the image has to itself, go straight to the file that has them
//! ([`Disk::place`]); all else is asked of [`Disk::perform`], on threads that may wait.
//!
//! Who changes where bytes are holds `shape` alone. Who looks up a place holds it shared, and keeps a
//! [`Flight`] beyond that, until the host is done with the place. A cluster is given to another use only
//! after nothing of its bytes is in flight.
#![expect(
    unsafe_code,
    reason = "the host reads and writes guest memory by its addresses"
)]

mod chain;
mod flight;
mod header;
mod storage;

#[cfg(test)]
mod tests;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use imago::io_buffers::IoVectorMut;
use imago::{FormatAccess, Mapping, ShallowMapping};
use thiserror::Error;

use super::scatter::Scatter;
use crate::virtio::buffers::NOTHING;
use storage::ImageFile;

pub use chain::ChainError;
pub(super) use chain::{Opened, open};
pub use flight::Flight;
use flight::Flights;
pub use header::{HeaderError, MAGIC};

/// Bytes that are moved while others wait for the shape of the image, at most.
const AT_ONCE: u64 = 16 << 20;

/// Bytes that are decompressed at once, at most.
const MOST_SPECIAL: u64 = 1 << 20;

/// Where bytes of the disk are.
pub enum Place {
    /// In a file, from there on. The flight is to be kept until the host is done with them.
    File {
        file: RawFd,
        offset: u64,
        flight: Flight,
    },
    /// Nowhere: they are zeroes.
    Zeroes,
    /// It cannot be said without waiting, or not at all.
    Unknown,
}

/// What is asked of [`Disk::perform`]. Offsets and lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Read {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        length: u64,
    },
    /// Zeroes are read from then on; where they may be, clusters are given back to the host.
    Zero {
        offset: u64,
        length: u64,
        unmap: bool,
    },
    /// What is read from then on does not matter.
    Discard {
        offset: u64,
        length: u64,
    },
    /// All that was written is on the host's storage.
    Flush,
}

/// A qcow2 image that is open.
pub struct Disk {
    image: ManuallyDrop<FormatAccess<ImageFile>>,
    version: u32,
    cluster: u64,
    size: u64,
    is_based: bool,
    shape: RwLock<()>,
    flights: Arc<Flights>,
    /// How often tables were changed, and how many of these times are on storage.
    changes: AtomicU64,
    synced: AtomicU64,
    /// `imago` has panicked: its tables in memory are not to be written any more.
    broken: AtomicBool,
}

impl Disk {
    fn new(image: FormatAccess<ImageFile>, version: u32, cluster: u64, is_based: bool) -> Self {
        let size = image.size();
        Self {
            image: ManuallyDrop::new(image),
            version,
            cluster,
            size,
            is_based,
            shape: RwLock::new(()),
            flights: Flights::new(),
            changes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Whether a flush has more to do than to sync the file.
    pub fn has_tables_to_write(&self) -> bool {
        self.changes.load(Ordering::SeqCst) != self.synced.load(Ordering::SeqCst)
    }

    /// Tables are about to be changed.
    fn changes(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Where bytes are, and how many from there on. Waits for nobody who changes that.
    pub fn place(&self, offset: u64, length: u64, to_write: bool) -> io::Result<(Place, u64)> {
        let unknown = Ok((Place::Unknown, length));
        let Ok(_shape) = self.shape.try_read() else {
            return unknown;
        };
        let (mapping, length) = self.guarded(|| self.image.get_mapping(offset, length))?;
        match mapping {
            Mapping::Raw {
                storage,
                offset: at,
                writable,
                ..
            } if writable || !to_write => {
                let place = Place::File {
                    file: storage.data(at, length),
                    offset: at,
                    flight: self.flights.begin(offset, length),
                };
                Ok((place, length))
            }
            Mapping::Zero { .. } if !to_write => Ok((Place::Zeroes, length)),
            _ => unknown,
        }
    }

    /// Does some work, as much as may be done at once.
    ///
    /// # Returns
    /// How many bytes were moved, where any were to be.
    ///
    /// # Errors
    /// The host fails, or the image is not as it should be.
    pub fn perform(&self, work: Work, memory: &mut Scatter, sync: bool) -> io::Result<u64> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the image is not in order any more"));
        }
        let done = self.guarded(|| match work {
            Work::Read { offset, length } => self.read(offset, length.min(AT_ONCE), memory),
            Work::Write { offset, length } => self.write(offset, length.min(AT_ONCE), memory),
            Work::Zero {
                offset,
                length,
                unmap,
            } => self.zero((offset, length), unmap),
            Work::Discard { offset, length } => self.discard(offset, length),
            Work::Flush => self.flush(),
        })?;
        if sync && !matches!(work, Work::Read { .. } | Work::Flush) {
            self.guarded(|| self.flush())?;
        }
        Ok(done)
    }

    /// Runs what reads tables that anybody may have made.
    fn guarded<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = caught(step);
        if done.as_ref().is_err_and(is_panic) {
            self.broken.store(true, Ordering::SeqCst);
            let files = self.image.inner().collect_storage_dependencies();
            files.iter().for_each(|file| file.seal());
        }
        done
    }

    fn read(&self, offset: u64, length: u64, memory: &mut Scatter) -> io::Result<u64> {
        let _shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        let (mapping, length) = self.image.get_mapping(offset, length)?;
        match mapping {
            Mapping::Raw {
                storage, offset, ..
            } => match memory.read(storage.data(offset, length), offset, length)? {
                // Behind the end of a file there are zeroes.
                0 => memory.buffers.fill(length),
                count => return Ok(count),
            },
            Mapping::Special { layer, offset, .. } => {
                return self.read_special(layer, (offset, length), memory);
            }
            Mapping::Zero { .. } | Mapping::Eof { .. } | _ => memory.buffers.fill(length),
        }
        Ok(length)
    }

    fn read_special(
        &self,
        layer: &FormatAccess<ImageFile>,
        (offset, length): (u64, u64),
        memory: &mut Scatter,
    ) -> io::Result<u64> {
        let length = length.min(MOST_SPECIAL);
        let mut bytes = vec![0; length as usize];
        layer
            .inner()
            .readv_special(IoVectorMut::from(&mut bytes[..]), offset)?;
        memory.buffers.give(&bytes);
        Ok(length)
    }

    fn write(&self, offset: u64, length: u64, memory: &mut Scatter) -> io::Result<u64> {
        let _shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        self.fill(offset, length, |file, at, left| {
            memory.write(file, at, left)
        })
    }

    /// Writes bytes into clusters that they have to themselves, as many as lie in a row.
    fn fill(
        &self,
        offset: u64,
        length: u64,
        mut write: impl FnMut(RawFd, u64, u64) -> io::Result<u64>,
    ) -> io::Result<u64> {
        self.changes();
        let mapping = self.image.prepare_data_mapping(offset, length, true)?;
        let (file, length) = (mapping.storage(), mapping.length());
        if file.keeps_back() {
            // Only then may an entry name the new clusters.
            self.image.flush()?;
        }
        let mut done = 0;
        while done < length {
            let (at, left) = (mapping.offset() + done, length - done);
            match write(file.data(at, left), at, left)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        self.image.commit_data_mapping(mapping)?;
        Ok(length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<u64> {
        let _shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        self.flights.wait(offset, length);
        let (start, end) = self.inner_clusters(offset, length);
        // In version 2 there are no zeroes that hide what the image is based on.
        if self.version > 2 || !self.is_based {
            self.each(start, end, |at, length, mapping| match mapping {
                ShallowMapping::Raw { writable: true, .. } | ShallowMapping::Special { .. } => {
                    self.let_go(at, length, &mapping)
                }
                _ => Ok(length),
            })?;
        }
        Ok(0)
    }

    fn zero(&self, (offset, length): (u64, u64), unmap: bool) -> io::Result<u64> {
        let _shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        self.flights.wait(offset, length);
        let (start, end) = self.inner_clusters(offset, length);
        let last = offset.saturating_add(length);
        self.each(offset, last.min(start), |at, length, mapping| {
            self.overwrite(at, length, &mapping)
        })?;
        self.each(start, end, |at, length, mapping| {
            let is_own = matches!(mapping, ShallowMapping::Raw { writable: true, .. });
            match mapping {
                ShallowMapping::Zero { .. } => Ok(length),
                _ if is_own && unmap && (self.version > 2 || !self.is_based) => {
                    self.let_go(at, length, &mapping)
                }
                _ if self.version > 2 => {
                    self.changes();
                    let inner = self.image.inner();
                    let done = inner.ensure_zero_mapping(at, length)?;
                    self.moved((at, length), done)
                }
                _ => self.overwrite(at, length, &mapping),
            }
        })?;
        self.each(end.max(start).min(last), last, |at, length, mapping| {
            self.overwrite(at, length, &mapping)
        })?;
        Ok(0)
    }

    /// Whole clusters inside of a range: all of the last one belongs to the disk.
    fn inner_clusters(&self, offset: u64, length: u64) -> (u64, u64) {
        let end = offset.saturating_add(length);
        let start = offset.next_multiple_of(self.cluster);
        let end = match end >= self.size {
            true => end,
            false => end - end % self.cluster,
        };
        (start, end.max(start))
    }

    /// Goes through a range, mapping by mapping; the step says how many bytes it has done.
    fn each(
        &self,
        start: u64,
        end: u64,
        mut step: impl FnMut(u64, u64, ShallowMapping<'_, ImageFile>) -> io::Result<u64>,
    ) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let (mapping, length) = self.image.get_shallow_mapping(at, end - at)?;
            let done = match length {
                0 => 0,
                _ => step(at, length, mapping)?,
            };
            if done == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at = at.saturating_add(done);
        }
        Ok(())
    }

    /// Gives whole clusters back. They read as zeroes from then on.
    fn let_go(
        &self,
        at: u64,
        length: u64,
        mapping: &ShallowMapping<'_, ImageFile>,
    ) -> io::Result<u64> {
        self.changes();
        if let ShallowMapping::Raw {
            storage, offset, ..
        } = mapping
        {
            // Without it the clusters are free in the image all the same.
            let _ = punch(storage.data(*offset, length), *offset, length);
        }
        let inner = self.image.inner();
        let done = match self.version > 2 {
            // SAFETY: nobody else has looked up a place, and what was in flight has landed.
            true => unsafe { inner.discard_to_zero_unsafe(at, length) },
            // SAFETY: as above.
            false => unsafe { inner.discard_to_backing_unsafe(at, length) },
        };
        self.moved((at, length), done?)
    }

    /// How many bytes were done from the beginning.
    fn moved(&self, asked: (u64, u64), (at, length): (u64, u64)) -> io::Result<u64> {
        if self.keeps_back() {
            self.image.flush()?;
        }
        match at == asked.0 && length > 0 {
            true => Ok(length.min(asked.1)),
            false => Err(io::Error::other("clusters were left out")),
        }
    }

    fn keeps_back(&self) -> bool {
        let files = self.image.inner().collect_storage_dependencies();
        files.iter().any(|file| file.keeps_back())
    }

    fn overwrite(
        &self,
        at: u64,
        length: u64,
        mapping: &ShallowMapping<'_, ImageFile>,
    ) -> io::Result<u64> {
        if let ShallowMapping::Zero { .. } = mapping {
            return Ok(length);
        }
        self.fill(at, length.min(AT_ONCE), |file, at, left| {
            let count = left.min(NOTHING.bytes().len() as u64);
            let bytes = NOTHING.bytes().get(..count as usize).unwrap_or_default();
            write_at(file, bytes, at)
        })
    }

    fn flush(&self) -> io::Result<u64> {
        let shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.load(Ordering::SeqCst);
        if self.has_tables_to_write() {
            self.image.flush()?;
        }
        drop(shape);
        self.image.sync()?;
        self.synced.fetch_max(changes, Ordering::SeqCst);
        Ok(0)
    }

    /// For tests: the image's own file.
    #[cfg(test)]
    pub fn file(&self) -> &ImageFile {
        self.image
            .inner()
            .collect_storage_dependencies()
            .pop()
            .unwrap()
    }

    /// Whether a sync has failed.
    pub fn is_lost(&self) -> bool {
        let files = self.image.inner().collect_storage_dependencies();
        files.iter().any(|file| file.is_lost())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.image.inner().writable() {
            let written = self.guarded(|| self.flush());
            if let Err(error) = written {
                log::warn!("a qcow2 image cannot be written to its end: {error}");
            }
        }
        // SAFETY: nothing uses it from here on.
        let image = unsafe { ManuallyDrop::take(&mut self.image) };
        let _ = caught(|| {
            drop(image);
            Ok(())
        });
    }
}

/// That there was a panic.
#[derive(Debug, Error)]
#[error("reading its tables panicked")]
struct Panicked;

fn is_panic(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.is::<Panicked>())
}

/// Runs what may panic: `imago` asserts what an image can break.
fn caught<T>(step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let done = catch_unwind(AssertUnwindSafe(step));
    done.unwrap_or_else(|_| Err(io::Error::other(Panicked)))
}

/// Makes a hole, which reads as zeroes.
fn punch(file: RawFd, offset: u64, length: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (offset as libc::off_t, length as libc::off_t);
    // SAFETY: takes numbers alone.
    match unsafe { libc::fallocate(file, mode, offset, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn write_at(file: RawFd, bytes: &[u8], offset: u64) -> io::Result<u64> {
    let offset = offset as libc::off_t;
    // SAFETY: the kernel reads the bytes of a slice.
    let done = unsafe { libc::pwrite(file, bytes.as_ptr().cast(), bytes.len(), offset) };
    u64::try_from(done).map_err(|_| io::Error::last_os_error())
}
