//! A disk's image: a file or a block device of the host.
#![expect(unsafe_code, reason = "asks the host about files and locks them")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use super::counters::Counters;
use super::pool::{Pool, Port};
use super::qcow2::{self, ChainError, Disk};
use crate::virtio::complaints::Complaints;

/// Bytes of a sector, in which everything is counted (section 5.2.4).
pub const SECTOR: u64 = 512;
/// Bytes of a serial number (section 5.2.6).
pub const SERIAL: usize = 20;
/// The largest blocks that a disk's own can be: larger ones are not told of to a guest.
const MAX_BLOCK: u64 = 64 << 10;
/// What direct I/O needs at most, where the host does not say it: blocks are not larger.
const CAREFUL_ALIGNMENT: u64 = 4096;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// What its first bytes say. A guest writes those of a raw image: of one that is found to be raw, it
    /// cannot write sector 0, so that it cannot make it anything else.
    Detect,
}

/// What of an image is locked against other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// The bytes that it has.
    ByteRange,
    /// All bytes that it could have.
    Full,
}

/// How an image is opened.
#[derive(Clone, Copy, Debug)]
pub struct ImageOptions<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// The guest only reads it.
    pub readonly: bool,
    /// It is kept out of the host's page cache.
    pub direct: bool,
    /// What the guest discards is given back to the host.
    pub sparse: bool,
    /// What it is.
    pub format: ImageFormat,
    /// What a qcow2 image is based on is opened.
    pub backing_files: bool,
    /// What of it is locked.
    pub lock: Lock,
    /// Its serial number: at most 20 bytes; without it one is made of the file's numbers.
    pub serial: Option<&'a str>,
}

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It is not there, or may not be opened.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// It may be read alone.
    #[error("it cannot be written; use readonly=on if the guest is to read it only")]
    NotWritable(#[source] io::Error),
    /// It is neither a file nor a block device.
    #[error("it is neither a file nor a block device")]
    Kind,
    /// The host does not say how large it is.
    #[error("cannot tell its size")]
    Size(#[source] io::Error),
    /// The page cache cannot be avoided.
    #[error("direct=on: its file system cannot do without the page cache")]
    Direct(#[source] io::Error),
    /// Somebody else has it.
    #[error(
        "another program has it locked (or another disk here has the same image): a writable image is \
         for one disk alone, one with readonly=on for readers"
    )]
    Locked,
    /// It cannot be locked.
    #[error("cannot lock it")]
    Lock(#[source] io::Error),
    /// Its first bytes cannot be read.
    #[error("cannot read its first and last bytes, which say what it is")]
    Header(#[source] io::Error),
    /// Its format is not supported.
    #[error(
        "{0} images are not supported yet; image_type=raw gives the guest the bytes of the file"
    )]
    Format(&'static str),
    /// It was not the same file when it was opened again.
    #[error("it was replaced while it was opened")]
    Replaced,
    /// It is a qcow2 image that cannot be used.
    #[error(transparent)]
    Qcow2(#[from] ChainError),
    /// There is no room for the threads that work for it.
    #[error("cannot start threads for it")]
    Threads(#[source] io::Error),
}

/// An image that is open and locked. The lock goes with the last descriptor of it.
pub struct Image {
    file: File,
    /// The description that has the lock.
    _locked: Option<File>,
    /// The file is a qcow2 image, with threads that work for it.
    qcow2: Option<(Arc<Disk>, Pool)>,
    pub(super) capacity: u64,
    pub(super) readonly: bool,
    pub(super) blocks: Blocks,
    /// Bytes that are discarded at once, where less has no effect.
    pub(super) granularity: u64,
    /// Holes can be punched, and are to be.
    pub(super) discards: bool,
    /// Sector 0 is as it is.
    pub(super) guarded: bool,
    pub(super) serial: [u8; SERIAL],
    pub(super) counters: Counters,
    /// Of requests that fail on the host.
    complaints: Complaints,
    /// The operator was told that the guest may not write sector 0.
    told_of_guard: AtomicBool,
    /// A flush has failed: what was written before may be lost.
    unflushed: AtomicBool,
    path: String,
}

/// What is read and written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Bytes of the smallest access: a power of two.
    pub logical: u64,
    /// Bytes of an access that is not slow: a power of two, at least `logical`.
    pub physical: u64,
    /// What buffers must be aligned to; 1 without direct I/O.
    pub memory: u64,
    /// What offsets and lengths must be aligned to; 1 without direct I/O.
    pub offset: u64,
}

/// A file that is open and locked.
pub(super) struct OpenFile {
    /// As it was opened.
    pub file: File,
    /// The same, past the host's page cache where that is wanted.
    pub data: File,
    pub size: u64,
    pub blocks: Blocks,
    is_device: bool,
    identity: (u64, u64),
}

/// Opens and locks a file.
pub(super) fn open_file(
    path: &Path,
    readonly: bool,
    direct: bool,
    lock: Lock,
) -> Result<OpenFile, ImageError> {
    // Opening what is no file may wait, or do something.
    let metadata = std::fs::metadata(path).map_err(ImageError::Open)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ImageError::Kind);
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).write(!readonly);
    let file = options
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS)
                if !readonly && File::open(path).is_ok() =>
            {
                ImageError::NotWritable(error)
            }
            _ => ImageError::Open(error),
        })?;
    let metadata = file.metadata().map_err(ImageError::Size)?;
    let is_device = metadata.file_type().is_block_device();
    let size = match is_device {
        true => device_size(&file).map_err(ImageError::Size)?,
        false => metadata.len(),
    };
    take_lock(&file, readonly, lock, size)?;
    let identity = (metadata.dev(), metadata.ino());
    let data = match direct {
        false => file.try_clone().map_err(ImageError::Open)?,
        true => {
            let data = options.open(path).map_err(ImageError::Open)?;
            let again = data.metadata().map_err(ImageError::Size)?;
            if (again.dev(), again.ino()) != identity {
                return Err(ImageError::Replaced);
            }
            avoid_cache(&data).map_err(ImageError::Direct)?;
            data
        }
    };
    let blocks = Blocks::of(&data, is_device, direct, metadata.blksize());
    Ok(OpenFile {
        file,
        data,
        size,
        blocks,
        is_device,
        identity,
    })
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// It cannot be used as asked.
    pub fn open(options: &ImageOptions<'_>) -> Result<Self, ImageError> {
        let ImageOptions {
            path,
            readonly,
            direct,
            sparse,
            format,
            backing_files,
            lock,
            serial,
        } = *options;
        let opened = open_file(path, readonly, direct, lock)?;
        let format = match format {
            ImageFormat::Detect => detect(&opened.file, opened.size)?,
            format => format,
        };
        let OpenFile {
            file,
            data,
            size,
            blocks,
            is_device,
            identity: (device, inode),
        } = opened;
        let (size, granularity, discards, qcow2) = match format {
            ImageFormat::Qcow2 => {
                let opened = qcow2::Opened {
                    path,
                    file: &file,
                    data: data.try_clone().map_err(ImageError::Open)?,
                    size,
                    writable: !readonly,
                    unit: blocks.offset,
                };
                let disk = Arc::new(qcow2::open(opened, backing_files, direct, lock)?);
                let pool = Pool::start(Arc::clone(&disk)).map_err(ImageError::Threads)?;
                (disk.size(), disk.cluster(), true, Some((disk, pool)))
            }
            ImageFormat::Raw | ImageFormat::Detect => {
                let discards = !readonly && sparse && (is_device || can_punch(&data, size));
                (size, blocks.physical, discards, None)
            }
        };
        let rest = size % blocks.logical;
        if rest != 0 {
            log::warn!(
                "image {}: its size of {size} bytes is no multiple of {}; the guest does not see the \
                 last {rest} bytes",
                path.display(),
                blocks.logical
            );
        }
        let own = format!("{device:x}-{inode:x}");
        Ok(Self {
            file: data,
            _locked: Some(file),
            qcow2,
            capacity: size - rest,
            readonly,
            blocks,
            granularity: granularity.max(blocks.physical),
            discards: discards && sparse && !readonly,
            guarded: format == ImageFormat::Detect && !readonly,
            serial: padded(serial.unwrap_or(&own)),
            counters: Counters::default(),
            complaints: Complaints::default(),
            told_of_guard: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            path: path.display().to_string(),
        })
    }

    /// The descriptor, which is open for as long as the image is there.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// What places bytes, if it is not the file that does.
    pub(super) fn disk(&self) -> Option<&Arc<Disk>> {
        self.qcow2.as_ref().map(|(disk, _)| disk)
    }

    /// A queue's way to the threads of the image, if it has any.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn port(&self) -> io::Result<Option<Port>> {
        self.qcow2.as_ref().map(|(_, pool)| pool.port()).transpose()
    }

    /// Whether a flush has failed, or a sync of tables in between.
    pub(super) fn is_unflushed(&self) -> bool {
        let is_lost = self.disk().is_some_and(|disk| disk.is_lost());
        if is_lost {
            self.flush_failed(&io::Error::from_raw_os_error(libc::EIO));
        }
        is_lost || self.unflushed.load(Ordering::SeqCst)
    }

    /// A flush has failed. Linux says so once and forgets it, and may have forgotten the data too: so no
    /// later flush can be told to have succeeded.
    pub(super) fn flush_failed(&self, error: &io::Error) {
        if !self.unflushed.swap(true, Ordering::SeqCst) {
            log::error!(
                "image {}: what the guest has written cannot be flushed, and may be lost: {error}; all \
                 flushes fail until the virtual machine is shut down and booted anew",
                self.path
            );
        }
    }

    /// What it has counted, by names.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.values()
    }

    /// Tells the operator of what failed.
    pub(super) fn complain(&self, what: &str, error: &io::Error) {
        self.complaints
            .warn(format_args!("image {}: {what} fails: {error}", self.path));
    }

    /// Tells the operator of a write to sector 0, once.
    pub(super) fn complain_of_guard(&self) {
        if !self.told_of_guard.swap(true, Ordering::Relaxed) {
            log::warn!(
                "image {}: the guest may not write sector 0, since image_type does not say that the \
                 image is raw; say image_type=raw if it is",
                self.path
            );
        }
    }

    /// Another one, for tests: of a file that cannot be opened as images are.
    #[cfg(test)]
    pub(super) fn of_file(file: File, capacity: u64) -> Self {
        Self {
            file,
            _locked: None,
            qcow2: None,
            capacity,
            readonly: false,
            blocks: Blocks {
                logical: SECTOR,
                physical: SECTOR,
                memory: 1,
                offset: 1,
            },
            granularity: SECTOR,
            discards: true,
            guarded: false,
            serial: padded("test"),
            counters: Counters::default(),
            complaints: Complaints::default(),
            told_of_guard: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            path: "of a test".to_owned(),
        }
    }

    /// For tests: the same image, whose direct I/O is said to need this.
    #[cfg(test)]
    pub(super) fn with_alignment(mut self, memory: u64, offset: u64) -> Self {
        self.blocks.memory = memory;
        self.blocks.offset = offset;
        self
    }
}

impl Blocks {
    fn of(file: &File, is_device: bool, direct: bool, preferred: u64) -> Self {
        let known = |size: u64| size.is_power_of_two() && (SECTOR..=MAX_BLOCK).contains(&size);
        let own = |request| is_device.then(|| device_block(file, request)).flatten();
        let mut logical = own(libc::BLKSSZGET).filter(|size| known(*size));
        let (mut memory, mut offset) = (1, 1);
        if direct {
            let (for_memory, for_offset) = alignment(file).unwrap_or_else(|| {
                let careful = logical.unwrap_or(CAREFUL_ALIGNMENT);
                (CAREFUL_ALIGNMENT, careful)
            });
            memory = for_memory;
            offset = for_offset;
            logical = Some(logical.unwrap_or(SECTOR).max(offset));
        }
        let logical = logical.unwrap_or(SECTOR);
        let physical = match is_device {
            true => own(libc::BLKPBSZGET),
            false => Some(preferred),
        };
        let physical = physical.filter(|size| known(*size));
        Self {
            logical,
            physical: physical.unwrap_or(logical).max(logical),
            memory,
            offset,
        }
    }
}

fn padded(serial: &str) -> [u8; SERIAL] {
    let mut bytes = [0; SERIAL];
    for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    bytes
}

/// Bytes of a block device.
fn device_size(file: &File) -> io::Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// A size that a block device says of itself.
fn device_block(file: &File, request: libc::Ioctl) -> Option<u64> {
    let mut size: libc::c_int = 0;
    // SAFETY: both requests write an integer.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut size) };
    (done == 0).then(|| u64::try_from(size).ok()).flatten()
}

/// What direct I/O needs of buffers, and of offsets and lengths (statx(2)), where the host says it.
fn alignment(file: &File) -> Option<(u64, u64)> {
    // SAFETY: it is made of numbers alone, for which zero is a value.
    let mut found: libc::statx = unsafe { zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    let fd = file.as_raw_fd();
    // SAFETY: the path ends with its NUL, and the result is as large as the kernel expects.
    let done = unsafe { libc::statx(fd, c"".as_ptr(), flags, mask, &raw mut found) };
    let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    let said = done == 0
        && found.stx_mask & libc::STATX_DIOALIGN != 0
        && memory.is_power_of_two()
        && offset.is_power_of_two()
        && u64::from(memory.max(offset)) <= MAX_BLOCK;
    said.then(|| (memory.into(), offset.into()))
}

fn avoid_cache(file: &File) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = flags | libc::O_DIRECT;
    // SAFETY: takes numbers alone.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Locks belong to the description that `open` has made (fcntl_locking(2), "Open file description
/// locks"): they stay until its last descriptor is closed.
fn take_lock(file: &File, readonly: bool, lock: Lock, size: u64) -> Result<(), ImageError> {
    // SAFETY: it is made of numbers alone, for which zero is a value.
    let mut wanted: libc::flock = unsafe { zeroed() };
    let kind = if readonly {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    wanted.l_type = kind as libc::c_short;
    wanted.l_whence = libc::SEEK_SET as libc::c_short;
    // No length is all that there could be.
    wanted.l_len = match lock {
        Lock::ByteRange => i64::try_from(size).unwrap_or(0),
        Lock::Full => 0,
    };
    // SAFETY: the kernel reads a lock.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => ImageError::Locked,
        _ => ImageError::Lock(error),
    })
}

/// Whether holes can be punched: behind the end, where there is nothing.
fn can_punch(file: &File, size: u64) -> bool {
    let Ok(size) = i64::try_from(size) else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers alone.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, size, 4096) == 0 }
}

/// Looks what an image is: qcow2, or nothing that is known, which is raw and stays [`ImageFormat::Detect`].
fn detect(file: &File, size: u64) -> Result<ImageFormat, ImageError> {
    let read = |offset: u64| {
        let mut bytes = [0; 8];
        match offset.checked_add(8).is_some_and(|end| end <= size) {
            true => file.read_exact_at(&mut bytes, offset).map(|()| bytes),
            false => Ok(bytes),
        }
    };
    let first = read(0).map_err(ImageError::Header)?;
    // A VHD image of fixed size has its header at the end.
    let last = match size.checked_sub(SECTOR) {
        Some(offset) => read(offset).map_err(ImageError::Header)?,
        None => [0; 8],
    };
    if first.starts_with(qcow2::MAGIC) {
        Ok(ImageFormat::Qcow2)
    } else if &first == b"vhdxfile" {
        Err(ImageError::Format("VHDX"))
    } else if &first == b"conectix" || &last == b"conectix" {
        Err(ImageError::Format("VHD"))
    } else {
        Ok(ImageFormat::Detect)
    }
}
