//! What a configuration must satisfy, whichever way it came in.

use std::path::Path;

use arch::Isa;

use super::error::{ConfigErrors, Problem};
use super::{
    ConsoleMode, VmConfig, device_nodes, disk, net, numa, passthrough, pci_segment, places,
    rate_limiter,
};
use crate::plan::HostMemory;

impl VmConfig {
    /// Checks everything that can be told without looking at the host.
    ///
    /// # Errors
    /// All problems, each with the option at fault as the command line spells it.
    pub fn validate(&self, isa: Isa) -> Result<(), ConfigErrors> {
        ConfigErrors::check(self.problems(isa))
    }

    /// As [`VmConfig::validate`], and whether the host has the memory that is asked for.
    ///
    /// # Errors
    /// All problems of both kinds.
    pub fn validate_on(&self, isa: Isa, host: &HostMemory) -> Result<(), ConfigErrors> {
        let mut problems = self.problems(isa);
        self.memory.validate_on(host, &mut problems);
        ConfigErrors::check(problems)
    }

    fn problems(&self, isa: Isa) -> Vec<Problem> {
        let Self {
            cpus,
            memory,
            payload,
            serial,
            console,
            debug_console,
            platform,
            numa: _,
            devices: _,
            user_devices: _,
            rate_limit_groups,
            disks: _,
            net: _,
            rng,
            vsock,
            pci_segments: _,
        } = self;
        let mut problems = Vec::new();
        payload.validate(&mut problems);
        cpus.validate(&mut problems);
        memory.validate(&mut problems);
        serial.validate(&mut problems);
        if let Some(console) = console {
            console.validate(&mut problems);
        }
        debug_console.validate(isa, &mut problems);
        platform.validate(isa, &mut problems);
        numa::validate(self, isa, &mut problems);
        passthrough::validate(self, &mut problems);
        rate_limiter::validate(rate_limit_groups, &mut problems);
        disk::validate(self, &mut problems);
        net::validate(self, &mut problems);
        if let Some(rng) = rng {
            rng.validate(&mut problems);
        }
        if let Some(vsock) = vsock {
            vsock.validate(&mut problems);
        }
        places::validate(self, &mut problems);
        device_nodes::validate(self, &mut problems);
        pci_segment::validate(self, &mut problems);
        let reason = "--serial has the terminal already; connect one of them elsewhere";
        if serial.mode == ConsoleMode::Tty {
            if debug_console.mode == ConsoleMode::Tty {
                problems.push(Problem::invalid("--debug-console tty", reason));
            }
            if console
                .as_ref()
                .is_some_and(|console| console.mode == ConsoleMode::Tty)
            {
                let reason = format!("{reason}: --console off or pty, say");
                problems.push(Problem::invalid("--console tty", reason));
            }
        }
        problems
    }
}

/// What is wrong with a path whatever the host's files are, if anything is.
pub(super) fn path_fault(path: &Path) -> Option<&'static str> {
    /// The longest path, in bytes: PATH_MAX less its NUL (path_resolution(7)).
    const MAX_PATH: usize = 4095;
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        Some("the path is empty")
    } else if bytes.contains(&0) {
        Some("a path cannot contain a NUL character")
    } else if bytes.len() > MAX_PATH {
        Some("a path has at most 4095 bytes")
    } else {
        None
    }
}

/// As [`path_fault`], of the path of a Unix socket.
pub(super) fn socket_fault(path: &Path) -> Option<&'static str> {
    /// The longest path of a Unix socket, in bytes: `sun_path` less its NUL (unix(7)).
    const MAX_SOCKET_PATH: usize = 107;
    let long = path.as_os_str().len() > MAX_SOCKET_PATH;
    path_fault(path).or(long.then_some("a socket's path has at most 107 bytes"))
}

#[cfg(test)]
mod tests;
