//! What the other lab tests stand on: a host that can run guests, and children under control.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use kvm_ioctls::Kvm;
use tests::coherent_device::Options;
use tests::{CoherentDevice, Hugepages, Vmm};

/// The only version that Linux has ever had (KVM API documentation, section 4.1).
const KVM_API_VERSION: i32 = 12;

#[test]
fn kvm_makes_a_vm_with_a_vcpu() {
    let kvm = Kvm::new().expect("/dev/kvm opens");
    assert_eq!(kvm.get_api_version(), KVM_API_VERSION);
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
}

#[test]
fn host_has_the_architecture_of_the_test() {
    let machine = std::process::Command::new("uname")
        .arg("-m")
        .output()
        .expect("uname runs");
    assert_eq!(
        String::from_utf8_lossy(&machine.stdout).trim(),
        std::env::consts::ARCH
    );
}

/// A hung guest must fail its own test only, and soon.
#[test]
fn a_hung_child_is_killed() -> Result<()> {
    let child = Vmm::program("sh")
        .args(["-c", "echo begun; exec sleep 1000"])
        .timeout(Duration::from_millis(250))
        .spawn()?;
    let pid = child.pid();
    child.wait_for_line("begun")?;
    let Err(error) = child.wait() else {
        panic!("a sleep of 1000 s ended by itself");
    };
    assert!(error.to_string().contains("still running"), "{error:#}");
    assert!(error.to_string().contains("begun"), "{error:#}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

#[test]
fn a_child_gets_input_and_its_end_is_seen() -> Result<()> {
    let mut child = Vmm::program("sh")
        .args(["-c", "read word; echo got $word; echo bad >&2; exit 7"])
        .spawn()?;
    child.write("hello\n")?;
    assert_eq!(child.wait_for_line("got")?, "got hello");
    let outcome = child.wait()?;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(outcome.stderr, "bad\n");
    assert!(outcome.success().is_err());
    Ok(())
}

#[test]
fn a_signal_ends_a_child() -> Result<()> {
    let child = Vmm::program("sleep").arg("1000").spawn()?;
    child.signal("TERM")?;
    let outcome = child.wait()?;
    assert_eq!(outcome.code(), None);
    assert_eq!(outcome.signal(), Some(15));
    Ok(())
}

#[test]
fn hugepages_are_reserved_and_given_back() -> Result<()> {
    let pages = Hugepages::reserve(16)?;
    assert_eq!(pages.free()?, 16);
    drop(pages);
    assert_eq!(Hugepages::reserve(0)?.free()?, 0);
    Ok(())
}

/// It is a program of its own, which has to get here.
#[test]
fn a_coherent_device_can_be_started() -> Result<()> {
    let device = CoherentDevice::start(Options::default())?;
    assert_eq!(device.memory()?.metadata()?.len(), 512 << 20);
    let client = vfio_user::Client::new(device.socket())?;
    assert_eq!(client.region(4).map(|region| region.size), Some(512 << 20));
    Ok(())
}
