//! Linux guests under our VMM, on real KVM: what they see, and how the VMM behaves around them.

mod api;
mod bad_input;
mod console;
mod cpus;
mod device_loss;
mod device_memory;
mod disks_fs;
mod everything;
mod late_memory;
mod lifecycle;
mod matrix;
mod memory;
mod net;
mod numa;
mod rate_limits;
mod report;
mod segments;
mod serial;
mod taps;
mod two_devices;
mod virtio;
mod virtio_disks;
mod vsock;
mod zones;

use tests::{CMDLINE, Initramfs, Vmm};

/// A guest that runs `script` and powers off.
fn guest(script: &str) -> anyhow::Result<Vmm> {
    Vmm::boot(&Initramfs::new(script), CMDLINE)
}

/// Kernel arguments for a guest that prints its kernel's first messages and then has nothing to boot:
/// enough for tests that look at the VMM from outside.
const EARLY_CONSOLE: &str = if cfg!(target_arch = "x86_64") {
    "earlyprintk=serial,ttyS0,115200"
} else {
    "earlycon=pl011,mmio32,0x9000000"
};

/// Such a guest.
fn early_guest() -> anyhow::Result<Vmm> {
    Vmm::boot(&Initramfs::new("true"), EARLY_CONSOLE)
}
