//! What an instruction set demands of a virtual machine: memory map, vCPU state at entry, boot
//! protocol, and the tables that a guest is handed.

pub mod aarch64;
pub mod smbios;
pub mod x86_64;

use serde::{Deserialize, Serialize};

/// Instruction set of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isa {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// A range of guest-physical addresses: `start` up to but not including `start + size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpaRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl GpaRange {
    /// The range of `size` bytes from `start`.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, size }
    }

    /// First address past the range; `u64::MAX` if there is none.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// Number of units at each level of the CPU topology; each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Threads in a core.
    pub threads_per_core: u32,
    /// Cores in a die.
    pub cores_per_die: u32,
    /// Dies in a package.
    pub dies_per_package: u32,
    /// Packages in the machine.
    pub packages: u32,
}
