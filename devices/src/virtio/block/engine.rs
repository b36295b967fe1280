//! How the host is asked to read and write: io_uring where there is one, or else one call after the
//! other, in the queue's own thread.
#![expect(
    unsafe_code,
    reason = "the host reads and writes guest memory by its addresses"
)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use libc::{c_int, iovec, off_t};

/// How long it is waited before a host without room is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// How often, where nothing is under way.
const PATIENCE: u32 = 10_000;

/// What the host is asked for. Buffers are `count` of `iovecs`.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Read {
        iovecs: *const iovec,
        count: u32,
        offset: u64,
    },
    Write {
        iovecs: *const iovec,
        count: u32,
        offset: u64,
        /// Not before it is on the host's storage is it done.
        synchronous: bool,
    },
    Allocate {
        mode: c_int,
        offset: u64,
        length: u64,
    },
    Sync,
}

/// Asks the host.
pub enum Engine {
    Ring(Box<Ring>),
    Calls,
}

/// An operation that has ended: whose it was, and what came of it, or the error's number less than zero.
pub type Completion = (u16, i32);

impl Engine {
    /// io_uring for so many operations at once; calls if the host refuses it or does not know all
    /// that is needed.
    pub fn new(entries: u16) -> Self {
        match Ring::new(entries) {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(error) => {
                log::info!("disks do without io_uring: {error}");
                Self::Calls
            }
        }
    }

    /// Readable when operations have ended, until [`Engine::next_completion`] has said so of all.
    pub fn event(&self) -> Option<RawFd> {
        match self {
            Self::Ring(ring) => Some(ring.ring.as_raw_fd()),
            Self::Calls => None,
        }
    }

    /// Begins an operation.
    ///
    /// # Returns
    /// What came of it, if it has ended by then.
    ///
    /// # Errors
    /// More operations than there is room for.
    ///
    /// # Safety
    /// The file, the iovecs and the memory that they name are there, and nothing but the guest and the
    /// host uses the memory, until the operation has ended or the engine is dropped.
    pub unsafe fn begin(
        &mut self,
        file: RawFd,
        operation: Operation,
        user: u16,
    ) -> io::Result<Option<i32>> {
        match self {
            // SAFETY: as the caller says.
            Self::Ring(ring) => unsafe { ring.push(file, operation, user) }.map(|()| None),
            // SAFETY: as the caller says, and it has ended when this returns.
            Self::Calls => Ok(Some(unsafe { call(file, operation) })),
        }
    }

    /// Hands to the host what was begun.
    pub fn submit(&mut self) {
        if let Self::Ring(ring) = self
            && !ring.ring.submission().is_empty()
        {
            // What is not taken now is handed over again.
            let _ = ring.submit(0);
        }
    }

    /// An operation that has ended.
    pub fn next_completion(&mut self) -> Option<Completion> {
        match self {
            Self::Ring(ring) => ring.next_completion(),
            Self::Calls => None,
        }
    }

    /// Whether anything has been begun and has not ended.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.begun > 0,
            Self::Calls => false,
        }
    }

    /// Whether the host was not handed all that was begun.
    pub fn has_unsubmitted(&mut self) -> bool {
        match self {
            Self::Ring(ring) => !ring.ring.submission().is_empty(),
            Self::Calls => false,
        }
    }

    /// Waits until an operation ends.
    ///
    /// # Errors
    /// The host takes none, and has none that is under way.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.wait(),
            Self::Calls => Ok(()),
        }
    }

    /// Lets all that works for it run on these host CPUs alone. To be called on the thread that uses it.
    ///
    /// # Errors
    /// The host says no.
    pub fn bind(&mut self, host_cpus: &[u32]) -> io::Result<()> {
        // SAFETY: a CPU set is an array of integers, for which zero is a value: the empty set.
        let mut set: libc::cpu_set_t = unsafe { zeroed() };
        for cpu in host_cpus.iter().map(|cpu| *cpu as usize) {
            if cpu < libc::CPU_SETSIZE as usize {
                // SAFETY: the CPU's number is below the set's size.
                unsafe { libc::CPU_SET(cpu, &mut set) };
            }
        }
        // SAFETY: the set is initialised and its size is given.
        if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
            return Err(io::Error::last_os_error());
        }
        match self {
            // The kernel's own workers for a thread do not run where the thread does of themselves.
            Self::Ring(ring) => ring.bind_workers(&set),
            Self::Calls => Ok(()),
        }
    }
}

/// An io_uring. Dropping it waits for what is under way.
pub struct Ring {
    ring: IoUring,
    /// Operations that have not ended, whether the host has them or not.
    begun: usize,
}

impl Ring {
    fn new(entries: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(entries).next_power_of_two())?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, begun: 0 })
    }

    /// # Safety
    /// As for [`Engine::begin`].
    unsafe fn push(&mut self, file: RawFd, operation: Operation, user: u16) -> io::Result<()> {
        // SAFETY: the caller says that the iovecs are there.
        let entry = unsafe { entry(Fd(file), operation) }.user_data(user.into());
        // SAFETY: the caller keeps what it names until it has ended, and dropping waits for the end.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("more requests than the ring has room for"))?;
        self.begun += 1;
        Ok(())
    }

    fn submit(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Binds the kernel's workers for this thread, which has begun nothing yet.
    fn bind_workers(&mut self, set: &libc::cpu_set_t) -> io::Result<()> {
        // A thread that has asked for nothing has none (io_uring_register(2)).
        let nothing = opcode::Nop::new().build();
        // SAFETY: it names nothing.
        let pushed = unsafe { self.ring.submission().push(&nothing) };
        pushed.map_err(io::Error::other)?;
        self.submit(1)?;
        let _ = self.ring.completion().next();
        self.ring.submitter().register_iowq_aff(set)
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        self.begun = self.begun.saturating_sub(1);
        // It is what `push` has put there.
        Some((entry.user_data() as u16, entry.result()))
    }

    /// How many operations the host has.
    fn under_way(&mut self) -> usize {
        let waiting = self.ring.submission().len();
        self.begun.saturating_sub(waiting)
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut tries = 0;
        loop {
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
            let Err(error) = self.submit(1) else {
                continue;
            };
            tries += 1;
            if tries > PATIENCE && self.under_way() == 0 {
                return Err(error);
            }
            thread::sleep(ASK_AGAIN);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.under_way() > 0 {
            while self.next_completion().is_some() {}
            if self.under_way() > 0 && self.wait().is_err() {
                return;
            }
        }
    }
}

/// A buffer that is alone: the kernel spares itself a list of one.
///
/// # Safety
/// As for [`Engine::begin`].
unsafe fn single(iovecs: *const iovec, count: u32) -> Option<(*mut u8, u32)> {
    if count != 1 {
        return None;
    }
    // SAFETY: the caller says that it is there.
    let iovec { iov_base, iov_len } = unsafe { iovecs.read() };
    let length = u32::try_from(iov_len).ok()?;
    Some((iov_base.cast(), length))
}

/// # Safety
/// As for [`Engine::begin`].
unsafe fn entry(file: Fd, operation: Operation) -> squeue::Entry {
    match operation {
        Operation::Read {
            iovecs,
            count,
            offset,
        } => {
            // SAFETY: as the caller says.
            match unsafe { single(iovecs, count) } {
                Some((buffer, length)) => opcode::Read::new(file, buffer, length)
                    .offset(offset)
                    .build(),
                None => opcode::Readv::new(file, iovecs, count)
                    .offset(offset)
                    .build(),
            }
        }
        Operation::Write {
            iovecs,
            count,
            offset,
            synchronous,
        } => {
            let flags = write_flags(synchronous);
            // SAFETY: as the caller says.
            match unsafe { single(iovecs, count) } {
                Some((buffer, length)) => opcode::Write::new(file, buffer, length)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Writev::new(file, iovecs, count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Allocate {
            mode,
            offset,
            length,
        } => opcode::Fallocate::new(file, length)
            .offset(offset)
            .mode(mode)
            .build(),
        Operation::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
    }
}

fn write_flags(synchronous: bool) -> c_int {
    if synchronous { libc::RWF_DSYNC } else { 0 }
}

/// Carries an operation out.
///
/// # Safety
/// As for [`Engine::begin`].
unsafe fn call(file: RawFd, operation: Operation) -> i32 {
    let done = match operation {
        Operation::Read {
            iovecs,
            count,
            offset,
        } => {
            // At most 1024.
            let count = count as c_int;
            // SAFETY: the caller says that the buffers are there.
            unsafe { libc::preadv(file, iovecs, count, offset as off_t) }
        }
        Operation::Write {
            iovecs,
            count,
            offset,
            synchronous,
        } => {
            let (count, flags) = (count as c_int, write_flags(synchronous));
            // SAFETY: the caller says that the buffers are there.
            unsafe { libc::pwritev2(file, iovecs, count, offset as off_t, flags) }
        }
        Operation::Allocate {
            mode,
            offset,
            length,
        } => {
            // SAFETY: takes numbers alone.
            let done = unsafe { libc::fallocate(file, mode, offset as off_t, length as off_t) };
            done as isize
        }
        // SAFETY: takes a number alone.
        Operation::Sync => (unsafe { libc::fdatasync(file) }) as isize,
    };
    if done < 0 {
        let error = io::Error::last_os_error();
        return -error.raw_os_error().unwrap_or(libc::EIO);
    }
    // The host moves less than 2 GiB at once (read(2)).
    i32::try_from(done).unwrap_or(i32::MAX)
}
