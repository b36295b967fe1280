//! Kernel, initramfs and boot structures in guest RAM.

use arch::x86_64::boot::{self, BootMemory, Entry, LoadError};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::machine::payload::Payload;
use crate::plan::{FirmwarePlan, GpaRange, Plan};

/// Why a guest's memory could not be prepared.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel cannot be used.
    #[error("--kernel {path}")]
    Kernel {
        /// What the operator gave.
        path: String,
        /// Why not.
        #[source]
        source: LoadError,
    },
    /// The initramfs cannot be used.
    #[error("--initramfs {path}")]
    Initramfs {
        /// What the operator gave.
        path: String,
        /// Why not.
        #[source]
        source: LoadError,
    },
    /// The command line cannot be used.
    #[error("--cmdline")]
    Cmdline(#[source] LoadError),
}

/// Loads everything that the guest starts from.
pub fn load(
    memory: &GuestMemoryMmap,
    plan: &Plan,
    payload: &mut Payload,
) -> Result<Entry, BootError> {
    let pair = |range: &GpaRange| (range.start, range.size);
    let ram: Vec<(u64, u64)> = plan.memory.ram.iter().map(pair).collect();
    let low_end = plan.memory.ram.first().map_or(0, GpaRange::end);
    let rsdp = match &plan.firmware {
        FirmwarePlan::Acpi { rsdp, .. } => Some(*rsdp),
        FirmwarePlan::DeviceTree => None,
    };
    let window = plan.memory.acpi_window;
    let memory_map = BootMemory {
        ram: &ram,
        acpi_window: window.as_ref().map(pair),
        rsdp,
        ram_top: window.map_or(low_end, |window| window.start),
    };
    let files = boot::Payload {
        kernel: &payload.kernel.file,
        initramfs: payload.initramfs.as_ref().map(|named| &named.file),
        cmdline: payload.cmdline.as_bytes(),
    };
    boot::load_kernel(memory, files, &memory_map).map_err(|source| blame(payload, source))
}

/// Names the option at fault.
fn blame(payload: &Payload, source: LoadError) -> BootError {
    match source {
        LoadError::CmdlineTooLong { .. } | LoadError::CmdlineNul(_) => BootError::Cmdline(source),
        LoadError::Initramfs(_) => {
            let initramfs = payload.initramfs.as_ref();
            let path = initramfs.map(|named| named.path.display().to_string());
            let path = path.unwrap_or_default();
            BootError::Initramfs { path, source }
        }
        source => BootError::Kernel {
            path: payload.kernel.path.display().to_string(),
            source,
        },
    }
}
