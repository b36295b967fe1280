//! What the host's kernel may run beside vCPUs.
#![expect(unsafe_code, reason = "asks the kernel for cookies of threads")]

use std::collections::BTreeSet;
use std::{fs, io};

use serde_json::json;

use crate::{machine, server, wait_for};

const VCPUS: usize = 3;

/// The core scheduling cookie of a thread, 0 being the calling one.
fn cookie(thread: i32) -> io::Result<u64> {
    let mut cookie = 0u64;
    let (scope, to) = (libc::PR_SCHED_CORE_SCOPE_THREAD, &raw mut cookie);
    let command = libc::PR_SCHED_CORE_GET;
    // SAFETY: the kernel writes a u64 where it is told to, and there is one.
    match unsafe { libc::prctl(libc::PR_SCHED_CORE, command, thread, scope, to) } {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cookies of a process, where the kernel has such things.
#[derive(Default)]
struct Cookies {
    vcpus: Vec<u64>,
    others: BTreeSet<u64>,
}

fn cookies(process: u32) -> Cookies {
    let mut found = Cookies::default();
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap();
        let thread = task.file_name().to_str().unwrap().parse().unwrap();
        // Threads of the API's connections come and go.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else {
            continue;
        };
        match cookie(thread) {
            Ok(cookie) if name.starts_with("vcpu") => found.vcpus.push(cookie),
            Ok(cookie) => drop(found.others.insert(cookie)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{name}"),
        }
    }
    found
}

#[test]
fn vcpus_have_the_cookies_that_were_asked_for_or_it_is_said_why_not() {
    for mode in [None, Some("Vm"), Some("Vcpu"), Some("Off")] {
        let mut server = server(&["-v"]);
        let mut machine = machine(&server, "listen");
        machine["cpus"] = json!({"boot_vcpus": VCPUS, "max_vcpus": VCPUS});
        if let Some(mode) = mode {
            machine["cpus"]["core_scheduling"] = json!(mode);
        }
        server.put("vm.create", &machine).expect(204);
        server.act("vm.boot").expect(204);
        wait_for(&mut server, "listen: ready", 1);
        assert_eq!(
            server.info()["config"]["cpus"]["core_scheduling"],
            json!(mode)
        );
        let missed = |errors: &str| errors.matches("--cpus core_scheduling=").count();
        let Ok(own) = cookie(0) else {
            let said = usize::from(matches!(mode, Some("Vm" | "Vcpu")));
            server.wait_until("a word of it", |server| missed(&server.errors()) >= said);
            assert_eq!(missed(&server.errors()), said, "{}", server.errors());
            continue;
        };
        // Threads of vCPUs take theirs when they start, in no order.
        server.wait_until("cookies", |server| {
            let Cookies { vcpus, others } = cookies(server.pid());
            assert_eq!(others, BTreeSet::from([own]));
            let different: BTreeSet<u64> = vcpus.iter().copied().collect();
            vcpus.len() == VCPUS
                && match mode {
                    None | Some("Vm") => different.len() == 1 && !different.contains(&own),
                    Some("Vcpu") => different.len() == VCPUS && !different.contains(&own),
                    _ => different == BTreeSet::from([own]),
                }
        });
        assert_eq!(missed(&server.errors()), 0, "{}", server.errors());
    }
}
