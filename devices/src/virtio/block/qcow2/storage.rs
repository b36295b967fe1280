//! The file of an image, as the crate `imago` reads and writes its tables, in an order that leaves the image
//! in order whenever the process ends, and whenever the host does.
//!
//! What has to be on storage before what: refcounts before the L2 entries that name the clusters, L2 entries
//! that let clusters go before their refcounts, tables before the entries that name them. `imago` keeps the
//! order of L2 tables and refcount blocks, but without waiting for storage between them; and it writes entries of the L1 table
//! and of the table of refcount blocks at once, while the refcounts of what they name are still in its memory.
//! So here
//!
//! - such an entry is kept back until `imago` flushes, which writes all refcounts first. Nothing names
//!   clusters whose refcount block is not named itself: [`Disk`](super::Disk) flushes before it does;
//! - between refcounts and other tables the file is synced, and between a table and what names it.
#![expect(
    unsafe_code,
    reason = "a trait of imago has functions that are unsafe to call"
)]

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::header::{Header, refcount_blocks};
use crate::virtio::buffers::NOTHING;

/// Bytes of an entry of a table.
const ENTRY: usize = 8;
/// Bytes of the header that `imago` writes once the table of refcount blocks has moved.
const HEADER: usize = 72;

/// What was written since the file was last synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Refcounts,
    Others,
}

/// A file of a chain of images.
pub struct ImageFile {
    /// Tables, through the host's page cache, and the copies that are made of clusters.
    tables: File,
    /// The guest's data: the same file, perhaps past the page cache.
    data: File,
    /// Bytes that are read and written at least, past the page cache.
    unit: u64,
    helper: CommonStorageHelper,
    order: Mutex<Order>,
    /// A sync has failed: what was written before may be lost.
    lost: AtomicBool,
    /// Nothing is to be written any more.
    sealed: AtomicBool,
    #[cfg(test)]
    journal: Mutex<Option<Vec<Written>>>,
}

/// What has to be written in order.
struct Order {
    cluster: u64,
    l1: Range<u64>,
    refcounts: Range<u64>,
    /// Where refcount blocks are, those included that are not yet named in the file.
    blocks: HashSet<u64>,
    /// Entries that are kept back, by their place: of the table of refcount blocks, and of the L1 table.
    new_blocks: BTreeMap<u64, [u8; ENTRY]>,
    new_l2s: BTreeMap<u64, [u8; ENTRY]>,
    unsynced: Option<Kind>,
}

/// Something that was done to the file, for tests.
#[cfg(test)]
#[derive(Clone, Debug)]
pub enum Written {
    Bytes(u64, Vec<u8>),
    Sync,
}

impl ImageFile {
    /// The file of an image without tables, which is only read.
    pub fn plain(tables: File, data: File, unit: u64) -> Self {
        let nowhere = 0..0;
        let places = (nowhere.clone(), nowhere);
        Self::new(tables, (data, unit), 1, places, HashSet::new())
    }

    /// The file of a qcow2 image.
    pub fn qcow2(tables: File, data: (File, u64), header: &Header, blocks: HashSet<u64>) -> Self {
        let places = (header.l1.clone(), header.refcounts.clone());
        Self::new(tables, data, header.cluster, places, blocks)
    }

    fn new(
        tables: File,
        (data, unit): (File, u64),
        cluster: u64,
        (l1, refcounts): (Range<u64>, Range<u64>),
        blocks: HashSet<u64>,
    ) -> Self {
        Self {
            tables,
            data,
            unit,
            helper: CommonStorageHelper::default(),
            order: Mutex::new(Order {
                cluster,
                l1,
                refcounts,
                blocks,
                new_blocks: BTreeMap::new(),
                new_l2s: BTreeMap::new(),
                unsynced: None,
            }),
            lost: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            #[cfg(test)]
            journal: Mutex::new(None),
        }
    }

    /// The descriptor for the guest's data, open for as long as this is there: with the page cache where a
    /// file that others are based on ends within what is read at least.
    pub fn data(&self, offset: u64, length: u64) -> RawFd {
        match offset.is_multiple_of(self.unit) && length.is_multiple_of(self.unit) {
            true => self.data.as_raw_fd(),
            false => self.tables.as_raw_fd(),
        }
    }

    /// Whether entries are kept back.
    pub fn keeps_back(&self) -> bool {
        let order = self.order();
        !order.new_blocks.is_empty() || !order.new_l2s.is_empty()
    }

    /// Whether a sync of it has failed.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// From now on nothing is written.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::SeqCst);
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.sealed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        #[cfg(test)]
        self.note(|| Written::Bytes(offset, bytes.to_vec()));
        self.tables.write_all_at(bytes, offset)
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        self.note(|| Written::Sync);
        let synced = self.tables.sync_data();
        if synced.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn write_in_order(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut order = self.order();
        if let Ok(entry) = <[u8; ENTRY]>::try_from(bytes) {
            if order.l1.contains(&offset) {
                order.new_l2s.insert(offset, entry);
                return Ok(());
            }
            if order.refcounts.contains(&offset) {
                order.new_blocks.insert(offset, entry);
                // There are no flags.
                order.blocks.insert(u64::from_be_bytes(entry));
                return Ok(());
            }
        }
        let moved = order.moved(bytes, offset);
        let is_block = bytes.len() as u64 == order.cluster && order.blocks.contains(&offset);
        let kind = if is_block {
            Kind::Refcounts
        } else {
            Kind::Others
        };
        let is_named = moved.is_some();
        if order
            .unsynced
            .is_some_and(|unsynced| unsynced != kind || is_named)
        {
            self.sync_file()?;
            order.unsynced = None;
        }
        self.write(bytes, offset)?;
        order.unsynced = Some(kind);
        if let Some(table) = moved {
            // The new table has all that was kept back of the old one.
            order.new_blocks.clear();
            let end = self.size()?;
            let found = refcount_blocks(&self.tables, &table, order.cluster, end);
            order.blocks = found.map_err(io::Error::other)?;
            order.refcounts = table;
        }
        Ok(())
    }

    /// Writes what was kept back. What it names is written.
    fn write_kept_back(&self) -> io::Result<()> {
        let mut order = self.order();
        let order = &mut *order;
        // A refcount block is named before what needs it.
        let kinds = [
            (&mut order.new_blocks, Kind::Refcounts),
            (&mut order.new_l2s, Kind::Others),
        ];
        for (kept, kind) in kinds {
            if !kept.is_empty() && order.unsynced.is_some() {
                self.sync_file()?;
                order.unsynced = None;
            }
            while let Some((at, entry)) = kept.first_key_value().map(|(at, entry)| (*at, *entry)) {
                order.unsynced = Some(kind);
                self.write(&entry, at)?;
                kept.remove(&at);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn note(&self, what: impl FnOnce() -> Written) {
        let mut journal = self.journal.lock().unwrap();
        if let Some(journal) = journal.as_mut() {
            journal.push(what());
        }
    }

    /// For tests: as if a sync had failed.
    #[cfg(test)]
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// For tests: begins to write down what is done, and gives what was until now.
    #[cfg(test)]
    pub fn take_journal(&self) -> Vec<Written> {
        self.journal
            .lock()
            .unwrap()
            .replace(Vec::new())
            .unwrap_or_default()
    }
}

impl Order {
    /// Where the table of refcount blocks is from now on, if these bytes move it.
    fn moved(&self, bytes: &[u8], offset: u64) -> Option<Range<u64>> {
        if offset != 0 || bytes.len() != HEADER {
            return None;
        }
        let start = u64::from_be_bytes(bytes.get(48..56)?.try_into().ok()?);
        let clusters = u32::from_be_bytes(bytes.get(56..60)?.try_into().ok()?);
        let end = start.checked_add(u64::from(clusters).checked_mul(self.cluster)?)?;
        (self.refcounts != (start..end)).then_some(start..end)
    }
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        use std::io::{Seek as _, SeekFrom};
        let metadata = self.tables.metadata()?;
        match metadata.is_file() {
            true => Ok(metadata.len()),
            false => (&self.tables).seek(SeekFrom::End(0)),
        }
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for mut buffer in bufv.into_inner() {
            let mut rest: &mut [u8] = &mut buffer;
            while !rest.is_empty() {
                match self.tables.read_at(rest, offset) {
                    // Behind the end there are zeroes.
                    Ok(0) => {
                        rest.fill(0);
                        offset = offset.saturating_add(rest.len() as u64);
                        break;
                    }
                    Ok(count) => {
                        rest = rest.get_mut(count..).unwrap_or_default();
                        offset = offset.saturating_add(count as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for buffer in bufv.into_inner() {
            self.write_in_order(&buffer, offset)?;
            offset = offset.saturating_add(buffer.len() as u64);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.tables.metadata()?.is_file() && offset >= self.size()? {
            // There is nothing yet, which reads as zeroes and is filled with them by what comes behind.
            return Ok(());
        }
        if super::punch(self.tables.as_raw_fd(), offset, length).is_ok() {
            return Ok(());
        }
        // SAFETY: the caller says the same of it.
        unsafe { self.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeroes = NOTHING.bytes();
        let mut done = 0;
        while done < length {
            let count = (length - done).min(zeroes.len() as u64);
            let bytes = zeroes.get(..count as usize).unwrap_or_default();
            self.write_in_order(bytes, offset.saturating_add(done))?;
            done += count;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.write_kept_back()
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_file()?;
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFile").finish_non_exhaustive()
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image's file")
    }
}
