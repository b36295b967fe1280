//! Plans to encode.

use ::pci::config_space::Identity;
use ::pci::{Bdf, DeviceFacts};

use super::super::placement::PlacedTables;
use super::super::{AcpiTables, EncodeError, RsdpAt};
use crate::plan::{
    CpuPlan, CpuTopology, DeviceNodes, EventDevicePlan, FunctionPlan, FunctionSource, GpaRange,
    InterruptPlan, IoWindow, Isa, PciPlan, PlannedCpu, PlatformDevices, Registers, SegmentPlan,
    SerialPlan, SleepPlan,
};

/// What tables are made from.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) isa: Isa,
    pub(super) cpus: CpuPlan,
    pub(super) interrupts: InterruptPlan,
    pub(super) devices: PlatformDevices,
    pub(super) pci: Option<PciPlan>,
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
            pci: None,
        }
    }

    /// A machine with one CPU and PCI segments 0 to `segments` - 1.
    pub(super) fn with_pci(isa: Isa, segments: u16) -> Self {
        let mut sample = Self::new(isa, 1, 1, [1; 4]);
        sample.pci = Some(PciPlan {
            segments: (0..segments).map(|number| segment(isa, number)).collect(),
        });
        sample
    }

    /// The tables, or why there are none.
    pub(super) fn try_encode(&self) -> Result<AcpiTables, EncodeError> {
        let Self {
            isa,
            cpus,
            interrupts,
            devices,
            pci,
        } = self;
        AcpiTables::encode(*isa, cpus, interrupts, devices, None, pci.as_ref())
    }

    pub(super) fn encode(&self) -> AcpiTables {
        self.try_encode().expect("a sample can be described")
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

/// A segment with a window of each kind and no functions. Configuration space is above 4 GiB on
/// aarch64.
pub(super) fn segment(isa: Isa, number: u16) -> SegmentPlan {
    const MIB: u64 = 1 << 20;
    let nth = |start: u64, size| GpaRange {
        start: start + u64::from(number) * size,
        size,
    };
    let (ecam, mmio32, intx) = match isa {
        Isa::X86_64 => (0xe000_0000, 0xc000_0000, 16..24),
        Isa::Aarch64 => (0x40_1000_0000, 0x1000_0000, 36..40),
    };
    let io = IoWindow {
        base: 0x1000,
        size: 0xf000,
    };
    SegmentPlan {
        number,
        ecam: nth(ecam, MIB),
        mmio32: nth(mmio32, 2 * MIB),
        mmio64: nth(0x100_0000_0000, 1 << 38),
        io: Some(io).filter(|_| isa == Isa::X86_64 && number == 0),
        intx: intx.collect(),
        numa_node: None,
        functions: Vec::new(),
    }
}

/// A function of this vendor in this slot, whose nodes are told in its `_DSD`.
pub(super) fn function(segment: u16, device: u8, vendor: u16, nodes: Vec<u32>) -> FunctionPlan {
    let identity = Identity {
        vendor,
        device: 0x2342,
        revision: 0,
        class: 0x03_02_00,
        subsystem_vendor: vendor,
        subsystem: 0,
    };
    FunctionPlan {
        id: format!("device{device}"),
        bdf: Bdf { segment, device },
        facts: DeviceFacts {
            identity,
            bars: Vec::new(),
            intx: true,
            driver: None,
            coherent: None,
        },
        bars: Vec::new(),
        source: FunctionSource::Reserved,
        nodes: Some(DeviceNodes {
            ids: nodes,
            dsd: true,
            generic_initiators: false,
            auto: false,
        }),
    }
}
