//! A VMM that outlives its guests: they reboot, power off, are stopped, and others come.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{CMDLINE, Initramfs, Linux, threads, usage};

use crate::EARLY_CONSOLE;

/// Does what it is told on the console.
const OBEY: &str = "echo ready
    read order </dev/console
    case $order in
        reboot) reboot -f; sleep 1000 ;;
        busy) for cpu in 0 1; do while :; do :; done & done; echo busy on $(nproc) CPUs; sleep 1000 ;;
        off) ;;
    esac";

#[test]
fn a_vmm_that_stays_boots_its_guest_again_and_takes_another() -> Result<()> {
    let mut linux = Linux::start(&["--no-shutdown"])?;
    let pid = linux.server.pid();
    // It listens before it has opened all that it needs, and answers afterwards. Connections are closed
    // a moment later than answers come.
    linux.server.get("vmm.ping").expect(200);
    std::thread::sleep(Duration::from_secs(1));
    let before = usage(pid)?;
    let mut machine = linux.machine(&Initramfs::new(OBEY), CMDLINE)?;
    linux.server.put("vm.create", &machine).expect(204);

    // The guest reboots, and powers off.
    linux.boot()?;
    linux.wait_for_lines("ready", 1)?;
    linux.expect_events(&["booting", "booted"])?;
    linux.write("reboot\n")?;
    linux.wait_for_lines("ready", 2)?;
    assert_eq!(linux.server.info()["state"], "Running");
    linux.write("off\n")?;
    linux.report()?;
    linux.server.wait_for_state("Shutdown");
    let so_far = ["booting", "booted", "rebooting", "rebooted", "shutdown"];
    linux.expect_events(&so_far)?;
    assert_eq!(linux.server.info().get("device_tree"), None);

    // It is booted again, and stopped while all its CPUs are busy.
    linux.boot()?;
    linux.wait_for_lines("ready", 1)?;
    linux.write("busy\n")?;
    linux.wait_for_lines("busy on 2 CPUs", 1)?;
    linux.server.act("vm.shutdown").expect(204);
    assert_eq!(linux.server.info()["state"], "Shutdown");
    let so_far = [&so_far[..], &["booting", "booted", "shutdown"]].concat();
    linux.expect_events(&so_far)?;
    let left = threads(pid);
    ensure!(!left.contains("vcpu"), "{left}");

    // Another one takes its place.
    linux.server.act("vm.delete").expect(204);
    linux.server.get("vm.info").expect(404);
    machine["payload"]["cmdline"] = json!(format!("{EARLY_CONSOLE} second"));
    linux.server.put("vm.create", &machine).expect(204);
    linux.boot()?;
    linux.wait_for_lines(" second", 1)?;
    linux.server.act("vm.delete").expect(204);
    let another = ["deleted", "booting", "booted", "shutdown", "deleted"];
    linux.expect_events(&[&so_far[..], &another].concat())?;
    linux.server.wait_until("descriptors closed", |_| {
        usage(pid).is_ok_and(|usage| usage.descriptors <= before.descriptors)
    });
    linux.server.act("vmm.shutdown").expect(204);
    assert_eq!(linux.server.wait().code(), Some(0));
    let events = linux.events()?;
    let (source, event, _) = events.last().context("no events")?;
    assert_eq!((source.as_str(), event.as_str()), ("vmm", "shutdown"));
    Ok(())
}
