//! How many descriptors this process may have.
#![expect(
    unsafe_code,
    reason = "the standard library knows no limits of processes"
)]

use std::io;

/// Descriptors that are enough for a VMM with every connection that a guest can have.
const ENOUGH: libc::rlim_t = 4096;

/// Lets the process have so many descriptors that a guest with all its connections leaves some for
/// everything else, as far as it may (RLIMIT_NOFILE, getrlimit(2)).
///
/// # Returns
/// How many it may have.
///
/// # Errors
/// The host says nothing of limits, or does not change them.
pub fn make_room() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes a limit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = ENOUGH.min(limit.rlim_max);
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted;
        // SAFETY: the kernel reads a limit.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_as_far_as_there_may_be() {
        let first = make_room().unwrap();
        assert!(first > 0);
        assert_eq!(make_room().unwrap(), first);
    }
}
