//! Plans to encode.

use super::super::placement::PlacedTables;
use super::super::{AcpiTables, RsdpAt};
use crate::plan::{
    CpuPlan, CpuTopology, EventDevicePlan, GpaRange, InterruptPlan, Isa, PlannedCpu,
    PlatformDevices, Registers, SerialPlan, SleepPlan,
};

/// What tables are made from.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) isa: Isa,
    pub(super) cpus: CpuPlan,
    pub(super) interrupts: InterruptPlan,
    pub(super) devices: PlatformDevices,
}

impl Sample {
    /// A machine with every device and the first `max` CPUs of `[threads, cores, dies, packages]`.
    pub(super) fn new(isa: Isa, boot: u32, max: u32, topology: [u32; 4]) -> Self {
        let (interrupts, devices) = match isa {
            Isa::X86_64 => (apic(), x86_devices()),
            Isa::Aarch64 => (gic(max), arm_devices()),
        };
        Self {
            isa,
            cpus: cpus(isa, boot, max, topology),
            interrupts,
            devices,
        }
    }

    pub(super) fn encode(&self) -> AcpiTables {
        AcpiTables::encode(self.isa, &self.cpus, &self.interrupts, &self.devices, None)
            .expect("a sample can be described")
    }

    pub(super) fn rsdp_at(&self) -> RsdpAt {
        match self.isa {
            Isa::X86_64 => RsdpAt::Fixed(0xe_0000),
            Isa::Aarch64 => RsdpAt::WindowStart,
        }
    }

    /// The tables in a window of just the right size.
    pub(super) fn place(&self) -> PlacedTables {
        let tables = self.encode();
        let window = GpaRange {
            start: 0x4020_0000,
            size: tables.size(self.rsdp_at()),
        };
        tables
            .place(window, self.rsdp_at())
            .expect("the window has the right size")
    }

    /// Bytes of the table of this name.
    pub(super) fn table(&self, name: &str) -> Vec<u8> {
        self.place()
            .tables
            .into_iter()
            .find(|table| table.name == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .bytes
    }
}

/// CPUs in order of their place in the topology. An x86 id has a bit field for each level, so it
/// has holes where a level is no power of two.
pub(super) fn cpus(isa: Isa, boot: u32, max: u32, topology: [u32; 4]) -> CpuPlan {
    let [threads, cores, dies, packages] = topology;
    let width = |count: u32| u64::from(count.next_power_of_two().trailing_zeros());
    let planned = |index: u32| {
        let thread = index % threads;
        let core = index / threads % cores;
        let die = index / (threads * cores) % dies;
        let package = index / (threads * cores * dies);
        let hardware_id = match isa {
            Isa::Aarch64 => u64::from(index % 16) | u64::from(index / 16) << 8,
            Isa::X86_64 => {
                let mut id = u64::from(package);
                for (part, count) in [(die, dies), (core, cores), (thread, threads)] {
                    id = id << width(count) | u64::from(part);
                }
                id
            }
        };
        PlannedCpu {
            index,
            hardware_id,
            package,
            die,
            core,
            thread,
        }
    };
    CpuPlan {
        boot,
        cpus: (0..max).map(planned).collect(),
        topology: CpuTopology {
            threads_per_core: threads,
            cores_per_die: cores,
            dies_per_package: dies,
            packages,
        },
        phys_bits: 40,
        pmu: false,
    }
}

fn apic() -> InterruptPlan {
    InterruptPlan::Apic {
        local_apic: 0xfee0_0000,
        io_apic: 0xfec0_0000,
        io_apic_id: 0,
    }
}

fn gic(cpus: u32) -> InterruptPlan {
    let range = |start, size| GpaRange { start, size };
    InterruptPlan::GicV3 {
        distributor: range(0x0800_0000, 0x1_0000),
        redistributors: range(0x0810_0000, u64::from(cpus) * 0x2_0000),
        its: range(0x0808_0000, 0x2_0000),
    }
}

fn x86_devices() -> PlatformDevices {
    let ports = |base, size| Registers::Pio { base, size };
    PlatformDevices {
        serial: Some(SerialPlan {
            registers: ports(0x3f8, 8),
            gsi: 4,
        }),
        rtc: ports(0x70, 2),
        events: Some(EventDevicePlan {
            registers: ports(0x604, 1),
            gsi: 5,
        }),
        sleep: Some(SleepPlan { base: 0x600 }),
        debug_console: Some(0xe9),
    }
}

fn arm_devices() -> PlatformDevices {
    let mmio = |start| {
        Registers::Mmio(GpaRange {
            start,
            size: 0x1000,
        })
    };
    PlatformDevices {
        serial: Some(SerialPlan {
            registers: mmio(0x0900_0000),
            gsi: 33,
        }),
        rtc: mmio(0x0901_0000),
        events: Some(EventDevicePlan {
            registers: mmio(0x0902_0000),
            gsi: 34,
        }),
        sleep: None,
        debug_console: None,
    }
}
