//! How large a page of the host is.
#![expect(unsafe_code, reason = "sysconf is a C function")]

/// Bytes of a page of the host.
pub(super) fn size() -> u64 {
    // SAFETY: takes no pointers, and any number for an argument.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Linux always knows it; nothing has smaller pages than this.
    u64::try_from(size).unwrap_or(4096).max(4096)
}
