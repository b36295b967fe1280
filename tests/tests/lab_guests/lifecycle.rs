//! Power-off, reboot, signals, and vCPUs that cannot run further.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::Vmm;

/// Does what it is told on the console.
pub(crate) const OBEY: &str = "echo ready
    read order </dev/console
    case $order in
        reboot) reboot -f; sleep 1000 ;;
        off) ;;
    esac";

#[test]
fn two_reboots_in_a_row_and_then_power_off() -> Result<()> {
    let mut vmm = crate::guest(OBEY)?
        .timeout(Duration::from_secs(30))
        .spawn()?;
    let pid = vmm.pid();
    for (boot, order) in ["reboot\n", "reboot\n", "off\n"].into_iter().enumerate() {
        vmm.wait_for_lines("ready", boot + 1)?;
        vmm.write(order)?;
    }
    assert_eq!(vmm.pid(), pid);
    let outcome = vmm.wait()?.success()?;
    assert_eq!(
        outcome.stdout.matches("ready").count(),
        3,
        "{}",
        outcome.stdout
    );
    Ok(())
}

#[test]
fn sigterm_and_sigint_shut_down_cleanly() -> Result<()> {
    for signal in ["TERM", "INT"] {
        let vmm = crate::early_guest()?.spawn()?;
        vmm.wait_for_line("Linux version")?;
        vmm.signal(signal)?;
        let outcome = vmm.wait()?;
        assert_eq!(outcome.code(), Some(0), "{signal}: {}", outcome.stderr);
    }
    Ok(())
}

/// A kernel of a few instructions that ends in something no vCPU can do.
#[cfg(target_arch = "aarch64")]
fn broken_kernel() -> Vec<u8> {
    /// `mov x2, #0x0b000000`, where the machine has nothing; `ldp x0, x1, [x2]`: a load for which the
    /// CPU gives KVM no syndrome, so that KVM cannot emulate it.
    const CODE: [u32; 2] = [0xd2a1_6002, 0xa940_0440];
    let mut image = vec![0_u8; 4096];
    // Documentation/arch/arm64/booting.rst: branch over the header, image_size at 16, flags at 24
    // (little-endian, 4 KiB pages), magic at 56.
    image[..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes());
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    for (slot, instruction) in image[64..].chunks_mut(4).zip(CODE) {
        slot.copy_from_slice(&instruction.to_le_bytes());
    }
    image
}

#[cfg(target_arch = "x86_64")]
fn broken_kernel() -> Vec<u8> {
    /// `ud2` without an interrupt table: a triple fault.
    const CODE: [u8; 2] = [0x0f, 0x0b];
    const ENTRY: u32 = 0x10_0000;
    let mut elf = vec![0_u8; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    // ELF-64 header (System V ABI): little-endian executable for x86-64, two program headers.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &u64::from(ENTRY).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    let mut segment = |at: usize, kind: u32, offset: u64, gpa: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &7_u32.to_le_bytes());
        for (position, value) in [offset, gpa, gpa, size, size, 4].into_iter().enumerate() {
            put(at + 8 + position * 8, &value.to_le_bytes());
        }
    };
    segment(64, 1, 0x200, ENTRY.into(), 16);
    segment(120, 4, 0x300, 0, 20);
    // Note "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY): the entry point.
    put(0x200, &CODE);
    put(0x300, &4_u32.to_le_bytes());
    put(0x304, &4_u32.to_le_bytes());
    put(0x308, &18_u32.to_le_bytes());
    put(0x30c, b"Xen\0");
    put(0x310, &ENTRY.to_le_bytes());
    elf
}

#[test]
fn a_vcpu_that_cannot_run_is_reported_with_its_registers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("broken");
    std::fs::write(&kernel, broken_kernel())?;
    let outcome = Vmm::new()?
        .arg("--kernel")
        .arg(&kernel)
        .args(["--serial", "tty", "--console", "off"])
        .run()?;
    assert_eq!(outcome.code(), Some(1), "{}", outcome.stderr);
    let stderr = &outcome.stderr;
    let (reason, register) = if cfg!(target_arch = "aarch64") {
        ("KVM_RUN failed", "x2 0x000000000b000000")
    } else if stderr.contains("its registers are lost") {
        // An AMD host: KVM resets a vCPU that shuts down.
        ("triple fault", "rip 0x000000000000fff0")
    } else {
        ("triple fault", "rip 0x0000000000100000")
    };
    ensure!(stderr.contains("vCPU 0 cannot run further"), "{stderr}");
    ensure!(stderr.contains(reason), "{stderr}");
    ensure!(stderr.contains(register), "{stderr}");
    Ok(())
}
