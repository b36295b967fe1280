//! Which host CPUs threads of vCPUs and of queues may run on.
#![expect(unsafe_code, reason = "the C library sets CPU affinity")]

use std::io;

use thiserror::Error;

use crate::config::{CpusConfig, DiskConfig};

/// Host CPUs that a C library's CPU set can name.
const SET_SIZE: u32 = libc::CPU_SETSIZE as u32;

/// Why vCPUs cannot be bound as asked.
#[derive(Debug, Error)]
pub enum AffinityError {
    /// The host does not say which CPUs this process may use.
    #[error("the host does not say which CPUs may be used")]
    Allowed(#[source] io::Error),
    /// A CPU that the host does not have or does not let this process use.
    #[error(
        "--cpus affinity=[{vcpu}@[{host_cpu}]]: this process may not run on host CPU {host_cpu}; \
         it may run on {allowed}"
    )]
    NotAllowed {
        /// The vCPU.
        vcpu: u32,
        /// The host CPU asked for.
        host_cpu: u32,
        /// Host CPUs that could be.
        allowed: String,
    },
    /// The same, of a queue of a disk.
    #[error(
        "{option},queue_affinity=[{queue}@[{host_cpu}]]: this process may not run on host CPU \
         {host_cpu}; it may run on {allowed}"
    )]
    QueueNotAllowed {
        /// The disk's option.
        option: String,
        /// The queue.
        queue: u16,
        /// The host CPU asked for.
        host_cpu: u32,
        /// Host CPUs that could be.
        allowed: String,
    },
}

/// Checks that every host CPU which `config` names can be used.
pub fn check(config: &CpusConfig) -> Result<(), AffinityError> {
    if config.affinity.is_empty() {
        return Ok(());
    }
    let allowed = allowed().map_err(AffinityError::Allowed)?;
    for affinity in &config.affinity {
        let outside = affinity.host_cpus.iter().find(|cpu| !allowed.contains(cpu));
        if let Some(host_cpu) = outside {
            return Err(AffinityError::NotAllowed {
                vcpu: affinity.vcpu,
                host_cpu: *host_cpu,
                allowed: format!("{allowed:?}"),
            });
        }
    }
    Ok(())
}

/// Checks that every host CPU which queues of disks are to be served on can be used.
pub fn check_queues(disks: &[DiskConfig]) -> Result<(), AffinityError> {
    if disks.iter().all(|disk| disk.queue_affinity.is_empty()) {
        return Ok(());
    }
    let allowed = allowed().map_err(AffinityError::Allowed)?;
    for disk in disks {
        for affinity in &disk.queue_affinity {
            let outside = affinity.host_cpus.iter().find(|cpu| !allowed.contains(cpu));
            if let Some(host_cpu) = outside {
                return Err(AffinityError::QueueNotAllowed {
                    option: disk.option(),
                    queue: affinity.queue_index,
                    host_cpu: *host_cpu,
                    allowed: format!("{allowed:?}"),
                });
            }
        }
    }
    Ok(())
}

/// Host CPUs that a vCPU is to run on; empty if it may run anywhere.
pub fn of_vcpu(config: &CpusConfig, index: u32) -> Vec<u32> {
    let mut list = config.affinity.iter();
    let found = list.find(|affinity| affinity.vcpu == index);
    found.map_or_else(Vec::new, |affinity| affinity.host_cpus.clone())
}

/// Binds the calling thread to `host_cpus`, unless that is empty.
pub fn bind_thread(host_cpus: &[u32]) -> io::Result<()> {
    if host_cpus.is_empty() {
        return Ok(());
    }
    let mut set = empty_set();
    for cpu in host_cpus.iter().filter(|cpu| **cpu < SET_SIZE) {
        // SAFETY: the CPU's number is below the set's size.
        unsafe { libc::CPU_SET(*cpu as usize, &mut set) };
    }
    // SAFETY: the set is initialised and its size is given.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn allowed() -> io::Result<Vec<u32>> {
    let mut set = empty_set();
    // SAFETY: the kernel fills in at most the size given.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the set is initialised and the CPU's number below its size.
    let has = |cpu: &u32| unsafe { libc::CPU_ISSET(*cpu as usize, &set) };
    Ok((0..SET_SIZE).filter(has).collect())
}

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: a CPU set is an array of integers, for which zero is a value: the empty set.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CpuAffinity;

    fn bound_to(host_cpu: u32) -> CpusConfig {
        CpusConfig {
            affinity: vec![CpuAffinity {
                vcpu: 0,
                host_cpus: vec![host_cpu],
            }],
            ..CpusConfig::default()
        }
    }

    #[test]
    fn a_host_cpu_that_is_not_there_is_named() {
        let error = check(&bound_to(100_000)).unwrap_err().to_string();
        assert!(error.contains("affinity=[0@[100000]]"), "{error}");
    }

    #[test]
    fn a_thread_runs_where_it_was_bound() {
        let here = *allowed().unwrap().last().unwrap();
        check(&bound_to(here)).unwrap();
        std::thread::spawn(move || {
            bind_thread(&[here]).unwrap();
            assert_eq!(allowed().unwrap(), [here]);
        })
        .join()
        .unwrap();
    }
}
