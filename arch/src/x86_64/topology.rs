//! CPU topology as x86 expresses it: fields of the APIC id.

use crate::CpuTopology;

/// The highest APIC id that a local APIC in xAPIC mode can have; 255 is the broadcast id.
pub const LAST_XAPIC_ID: u32 = 254;

/// Where a CPU sits: each number counts from 0 within the level above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Package.
    pub package: u32,
    /// Die within the package.
    pub die: u32,
    /// Core within the die.
    pub core: u32,
    /// Thread within the core.
    pub thread: u32,
}

impl CpuTopology {
    /// Position of the core field in an APIC id: bits that number the threads of a core.
    pub fn core_shift(&self) -> u32 {
        width(self.threads_per_core)
    }

    /// Position of the die field: bits that number the threads of a die.
    pub fn die_shift(&self) -> u32 {
        self.core_shift() + width(self.cores_per_die)
    }

    /// Position of the package field: bits that number the threads of a package.
    pub fn package_shift(&self) -> u32 {
        self.die_shift() + width(self.dies_per_package)
    }

    /// Threads in a package; saturates.
    pub fn threads_per_package(&self) -> u32 {
        self.threads_per_core
            .saturating_mul(self.cores_per_die)
            .saturating_mul(self.dies_per_package)
    }

    /// The place that an APIC id names; the inverse of [`apic_id`].
    pub fn place(&self, apic_id: u32) -> Place {
        let field = |from, to| shr(apic_id, from) & !shl(u32::MAX, to - from);
        Place {
            package: shr(apic_id, self.package_shift()),
            die: field(self.die_shift(), self.package_shift()),
            core: field(self.core_shift(), self.die_shift()),
            thread: field(0, self.core_shift()),
        }
    }
}

/// The x2APIC id of a thread (Intel SDM, volume 3, section 9.9.1, "Hierarchical Mapping of Shared
/// Resources"): one field for each level, as wide as the level's number of units needs, so ids
/// have holes where that number is no power of two. Its low 8 bits are the xAPIC id.
///
/// Each argument counts from 0 and is below the topology's number for its level. Ids are unique
/// as long as all fields together fit 32 bits.
pub fn apic_id(topology: &CpuTopology, package: u32, die: u32, core: u32, thread: u32) -> u32 {
    shl(package, topology.package_shift())
        | shl(die, topology.die_shift())
        | shl(core, topology.core_shift())
        | thread
}

/// Bits needed to number `count` units from 0.
fn width(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

/// Shifts that yield 0, rather than overflow, when everything is shifted out.
fn shl(value: u32, by: u32) -> u32 {
    value.checked_shl(by).unwrap_or(0)
}

fn shr(value: u32, by: u32) -> u32 {
    value.checked_shr(by).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_as_wide_as_the_counts_need() {
        let topology = CpuTopology {
            threads_per_core: 2,
            cores_per_die: 6,
            dies_per_package: 3,
            packages: 2,
        };
        assert_eq!(topology.core_shift(), 1);
        assert_eq!(topology.die_shift(), 4);
        assert_eq!(topology.package_shift(), 6);
        assert_eq!(topology.threads_per_package(), 36);
        assert_eq!(apic_id(&topology, 1, 2, 5, 1), 0b110_1011);
    }

    #[test]
    fn a_flat_machine_counts_up() {
        let topology = CpuTopology {
            threads_per_core: 1,
            cores_per_die: 255,
            dies_per_package: 1,
            packages: 1,
        };
        for core in 0..255 {
            assert_eq!(apic_id(&topology, 0, 0, core, 0), core);
        }
    }

    #[test]
    fn absurd_counts_do_not_overflow() {
        let huge = u32::MAX;
        let topology = CpuTopology {
            threads_per_core: huge,
            cores_per_die: huge,
            dies_per_package: huge,
            packages: huge,
        };
        assert_eq!(topology.package_shift(), 96);
        assert_eq!(topology.threads_per_package(), huge);
        assert_eq!(apic_id(&topology, 9, 9, 9, 9), 9);
        assert_eq!(
            topology.place(7),
            Place {
                package: 0,
                die: 0,
                core: 0,
                thread: 7
            }
        );
    }

    proptest! {
        #[test]
        fn ids_are_unique_and_name_their_place(
            threads in 1u32..5, cores in 1u32..9, dies in 1u32..5, packages in 1u32..5
        ) {
            let topology = CpuTopology { threads_per_core: threads, cores_per_die: cores, dies_per_package: dies, packages };
            let mut seen = HashSet::new();
            for package in 0..packages {
                for die in 0..dies {
                    for core in 0..cores {
                        for thread in 0..threads {
                            let id = apic_id(&topology, package, die, core, thread);
                            prop_assert!(seen.insert(id), "{id:#x} twice");
                            prop_assert_eq!(topology.place(id), Place { package, die, core, thread });
                        }
                    }
                }
            }
        }
    }
}
