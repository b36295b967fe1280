//! What lab tests are written with: guests from a few lines of shell, a VMM under a timeout, and
//! what the guest reported.
//!
//! ```no_run
//! # use tests::{CMDLINE, Initramfs, Vmm};
//! let outcome = Vmm::boot(&Initramfs::new("section cpus nproc"), CMDLINE)?
//!     .args(["--cpus", "boot=2", "--memory", "size=512M"])
//!     .run()?;
//! assert_eq!(outcome.report()?.text("cpus")?.trim(), "2");
//! # anyhow::Ok(())
//! ```

pub mod api;
pub mod binaries;
pub mod coherent_device;
mod cpio;
mod forward;
mod host;
mod initramfs;
mod lab;
mod linux;
pub mod load;
mod output;
pub mod passthrough;
pub mod probe;
pub mod qcow2;
mod report;
mod shared_card;
mod signals;
mod summary;
pub mod tap;
mod vmm;

pub use coherent_device::CoherentDevice;
pub use forward::Forward;
pub use host::{
    ACCESSES_TO_VMM, Hugepages, Mapping, Placement, Usage, kvm_counter, mappings, placements,
    threads, usage, vcpu_affinity,
};
pub use initramfs::{CMDLINE, Initramfs};
pub use lab::Lab;
pub use linux::Linux;
pub use report::{Report, SharedReport};
pub use shared_card::SharedCard;
pub use summary::Summary;
pub use vmm::{Outcome, RunningVmm, Vmm};
