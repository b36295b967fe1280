//! Signals as children find them.
#![expect(
    unsafe_code,
    reason = "changes what a child ignores, between fork and exec"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Signals that end a VMM, and that those who start programs make them ignore: shells without job
/// control do it with `&` (SIGINT and SIGQUIT), nohup(1) does it (SIGHUP). Whatever is ignored stays
/// so in children, and the VMM respects it.
const SIGNALS: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Makes the child find these signals as an interactive shell's foreground programs do, however the
/// tests themselves were started.
pub(crate) fn restore_defaults(command: &mut Command) -> &mut Command {
    let restore = || {
        for signal in SIGNALS {
            // SAFETY: the number is that of a signal, and no handler is installed.
            if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: signal(2) may be called between fork and exec, and nothing is allocated.
    unsafe { command.pre_exec(restore) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(command: &mut Command) -> u64 {
        let output = command.arg("/proc/self/status").output().unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn a_child_does_not_inherit_what_is_ignored_here() {
        let bits = |set: u64| SIGNALS.map(|signal| set >> (signal - 1) & 1);
        let mut plain = Command::new("sh");
        plain.args(["-c", "trap '' HUP INT QUIT TERM; exec cat \"$0\""]);
        assert_eq!(bits(ignored(&mut plain)), [1; 4]);

        let before = SIGNALS.map(|signal| {
            // SAFETY: the number is that of a signal, and no handler is installed.
            unsafe { libc::signal(signal, libc::SIG_IGN) }
        });
        let inherited = ignored(&mut Command::new("cat"));
        let restored = ignored(restore_defaults(&mut Command::new("cat")));
        for (signal, before) in SIGNALS.into_iter().zip(before) {
            // SAFETY: this is what it was before.
            unsafe { libc::signal(signal, before) };
        }
        assert_eq!(bits(inherited), [1; 4]);
        assert_eq!(bits(restored), [0; 4]);
    }
}
