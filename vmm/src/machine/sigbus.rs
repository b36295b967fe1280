//! Memory of a device that goes while this process itself accesses it.
//!
//! A server can truncate the file behind its device's memory, and a device of the host can be turned
//! off: an access to the mapping is then a `SIGBUS` for the thread that does it. Ranges that are known
//! to be a device's are replaced by zeros, and the thread goes on; elsewhere the signal ends the process,
//! as ever. KVM's own accesses raise none: see [`DeviceAreas::recheck`](super::areas::DeviceAreas::recheck).
//!
//! What runs in the handler is limited to atomics and system calls (signal-safety(7)).
#![expect(unsafe_code, reason = "a signal handler that maps memory")]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::os::fd::IntoRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Ranges at a time: a device has seven regions at most, and a guest has at most 31 devices on each of
/// a few segments. Regions beyond are not guarded.
const RANGES: usize = 1024;

/// Linux, include/uapi/asm-generic/siginfo.h: sent for an address, to the thread that accessed it.
const BUS_ADRALN: c_int = 1;
const BUS_MCEERR_AR: c_int = 4;

/// A range; free while `start` is 0, and not yet or no longer there while `size` is 0.
struct Range {
    start: AtomicUsize,
    size: AtomicUsize,
    /// Whether the handler has replaced it.
    replaced: AtomicBool,
}

static TABLE: [Range; RANGES] = [const {
    Range {
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        replaced: AtomicBool::new(false),
    }
}; RANGES];

/// Written when a range was replaced; -1 is nothing.
static EVENT: AtomicI32 = AtomicI32::new(-1);

/// Prepares the process; `event` is written when memory of a device was replaced. Once is enough.
///
/// # Errors
/// The handler cannot be set, or there is no descriptor left.
pub fn prepare(event: &EventFd) -> io::Result<()> {
    // A descriptor that is never closed: the handler may run at any time.
    let descriptor = event.try_clone()?.into_raw_fd();
    if EVENT
        .compare_exchange(-1, descriptor, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        // SAFETY: the descriptor was just made and nobody else has it.
        unsafe { libc::close(descriptor) };
        return Ok(());
    }
    // SAFETY: an action is plain data, for which zero is a value.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A range that is guarded until this is dropped, which must be before it is unmapped.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Guards `size` bytes, whole pages, from `start`; `None` if there is no room in the table.
    ///
    /// # Safety
    /// All of the range is the caller's mapping of a device, in which the device may put zeros at
    /// any time: nobody has a Rust reference into it.
    pub unsafe fn new(start: *mut u8, size: usize) -> Option<Self> {
        let start = start as usize;
        let free = |range: &Range| {
            let taken = range
                .start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Acquire);
            taken.is_ok()
        };
        let number = TABLE.iter().position(free)?;
        let range = TABLE.get(number)?;
        range.replaced.store(false, Ordering::Release);
        range.size.store(size, Ordering::Release);
        Some(Self(number))
    }

    /// Whether the range was replaced by zeros.
    pub fn was_replaced(&self) -> bool {
        let range = TABLE.get(self.0);
        range.is_some_and(|range| range.replaced.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(range) = TABLE.get(self.0) {
            range.size.store(0, Ordering::Release);
            range.start.store(0, Ordering::Release);
        }
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the C library's `errno` of this thread is always there.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The interrupted code may be about to read it.
    let saved = unsafe { *errno };
    // SAFETY: the kernel passes a valid structure, which nobody else has.
    let info = unsafe { &*info };
    let code = info.si_code;
    // The kernel has no other codes for accesses; what other processes send has none above 0.
    let is_access = (BUS_ADRALN..=BUS_MCEERR_AR).contains(&code);
    // SAFETY: every signal has the bytes; where they are no address, they are not used.
    let address = unsafe { info.si_addr() } as usize;
    if !(is_access && replace_range_of(address)) {
        give_up(signal, is_access);
    }
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Puts zeros into the range that `address` is in, if there is one.
fn replace_range_of(address: usize) -> bool {
    for range in &TABLE {
        let start = range.start.load(Ordering::Acquire);
        let size = range.size.load(Ordering::Acquire);
        let inside = start != 0 && address >= start && address - start < size;
        // Both numbers are of the same range: it is not given to another while this is so.
        if !inside || range.start.load(Ordering::Acquire) != start {
            continue;
        }
        // SAFETY: whoever guards the range has promised that its contents may be replaced.
        let mapped = unsafe {
            libc::syscall(
                libc::SYS_mmap,
                start,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == -1 {
            return false;
        }
        range.replaced.store(true, Ordering::Release);
        let one = 1_u64;
        let event = EVENT.load(Ordering::Acquire);
        // SAFETY: 8 bytes are read from `one`. An event that cannot be written is one that is full.
        unsafe { libc::write(event, (&raw const one).cast(), size_of::<u64>()) };
        return true;
    }
    false
}

/// Lets the signal do what it does where nobody handles it.
fn give_up(signal: c_int, is_access: bool) {
    // SAFETY: an action is plain data, for which zero is a value: the default action, no flags.
    let action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: the signal is one whose action can be set, and the action is valid.
    unsafe { libc::sigaction(signal, &raw const action, null_mut()) };
    // An access is done again and meets the same fate.
    if !is_access {
        // SAFETY: there is no precondition; the signal comes when the handler has returned.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const SIZE: usize = 64 << 10;

    struct Shared {
        file: File,
        address: *mut u8,
    }

    impl Shared {
        fn new() -> Self {
            // SAFETY: the name is a C string.
            let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: the descriptor is new.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(SIZE as u64).unwrap();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let address = unsafe { libc::mmap(null_mut(), SIZE, prot, libc::MAP_SHARED, fd, 0) };
            assert_ne!(address, libc::MAP_FAILED);
            Self {
                file,
                address: address.cast(),
            }
        }

        fn read(&self, offset: usize) -> u8 {
            // SAFETY: inside the mapping.
            unsafe { self.address.wrapping_add(offset).read_volatile() }
        }

        fn write(&self, offset: usize, value: u8) {
            // SAFETY: inside the mapping.
            unsafe { self.address.wrapping_add(offset).write_volatile(value) };
        }
    }

    impl Drop for Shared {
        fn drop(&mut self) {
            // SAFETY: mapped by `new`.
            unsafe { libc::munmap(self.address.cast(), SIZE) };
        }
    }

    #[test]
    fn memory_that_is_gone_is_zeros() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        prepare(&event).unwrap();
        let other = Shared::new();
        let memory = Shared::new();
        // SAFETY: both are nobody else's.
        let guards = [&other, &memory].map(|it| unsafe { Guard::new(it.address, SIZE) }.unwrap());
        other.write(0, 7);
        memory.write(0x3000, 9);
        memory.file.set_len(0x1000).unwrap();
        assert_eq!(memory.read(0x3000), 0);
        memory.write(0x3000, 5);
        assert_eq!(memory.read(0x3000), 5);
        assert_eq!(other.read(0), 7);
        assert_eq!(guards.each_ref().map(Guard::was_replaced), [false, true]);
        // The event is that of the first test that prepared.
        drop(guards);
        // SAFETY: as above.
        let again = unsafe { Guard::new(other.address, SIZE) }.unwrap();
        assert!(!again.was_replaced());
    }

    /// How a copy of this process ends that does something.
    fn end_of_child(act: impl FnOnce()) -> c_int {
        // SAFETY: the child does nothing but `act`, which only accesses memory and makes system calls.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // No core file.
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: the structure is valid.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
            act();
            // SAFETY: there is no precondition.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: the status is written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status
    }

    #[test]
    fn elsewhere_the_signal_ends_the_process() {
        prepare(&EventFd::new(EFD_NONBLOCK).unwrap()).unwrap();
        let memory = Shared::new();
        memory.file.set_len(0).unwrap();
        let status = end_of_child(|| {
            memory.read(0);
        });
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
        // Guarded or not, what another process sends is no access.
        // SAFETY: the memory is nobody else's.
        let _guard = unsafe { Guard::new(memory.address, SIZE) }.unwrap();
        let status = end_of_child(|| {
            // SAFETY: there is no precondition.
            unsafe { libc::raise(libc::SIGBUS) };
        });
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(end_of_child(|| assert_eq!(memory.read(0), 0)), 0);
    }
}
