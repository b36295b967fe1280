//! Processor Properties Topology Table (ACPI 6.5, section 5.2.30).
//!
//! A tree from the machine down to its processors: packages, dies where a package has several,
//! cores, and threads where a core has several. It lists no caches: the guest reads the host's from
//! the CPU's own registers, and how the host shares them among vCPUs is not known.

use std::collections::BTreeMap;

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::table::{Table, TableBuilder};
use crate::plan::{CpuPlan, PlannedCpu};

/// Revision 2 (ACPI 6.3): the first with the leaf, thread and identical flags. The third changes
/// only the cache structure.
const REVISION: u8 = 2;

/// Processor structure flags (section 5.2.30.1).
mod flags {
    pub(super) const PHYSICAL_PACKAGE: u32 = 1 << 0;
    pub(super) const ACPI_ID_VALID: u32 = 1 << 1;
    pub(super) const IS_THREAD: u32 = 1 << 2;
    pub(super) const LEAF: u32 = 1 << 3;
    /// All processors below are of the same implementation. Meaningless on a leaf.
    pub(super) const IDENTICAL: u32 = 1 << 4;
}

/// Processor hierarchy node structure (type 0, section 5.2.30.1).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Node {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    flags: U32,
    /// Offset of the parent from the start of the table; 0 for the root.
    parent: U32,
    acpi_id: U32,
    private_resources: U32,
}

const _: () = assert!(size_of::<Node>() == 20);

/// A place in the tree above the leaves; parts below the level are 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Package(u32),
    Die(u32, u32),
    Core(u32, u32, u32),
}

/// The tree. Each node follows its parent, as the references need.
pub(super) fn encode(cpus: &CpuPlan) -> Table {
    let mut tree = Tree {
        table: TableBuilder::new(*b"PPTT", REVISION),
        groups: BTreeMap::new(),
    };
    let root = tree.push(flags::IDENTICAL, 0, 0);
    for cpu in &cpus.cpus {
        let parent = tree.parent_of(cpus, cpu, root);
        let thread = if cpus.topology.threads_per_core > 1 {
            flags::IS_THREAD
        } else {
            0
        };
        tree.push(
            flags::LEAF | flags::ACPI_ID_VALID | thread,
            parent,
            cpu.index,
        );
    }
    tree.table.finish()
}

struct Tree {
    table: TableBuilder,
    /// Offsets of the nodes above the leaves.
    groups: BTreeMap<Group, u32>,
}

impl Tree {
    /// Appends a node and gives its offset.
    fn push(&mut self, flags: u32, parent: u32, acpi_id: u32) -> u32 {
        let offset = self.table.len() as u32;
        self.table.push(&Node {
            kind: 0,
            length: 20,
            reserved: [0; 2],
            flags: flags.into(),
            parent: parent.into(),
            acpi_id: acpi_id.into(),
            private_resources: U32::ZERO,
        });
        offset
    }

    /// Offset of the node above `cpu`, made with those above it where they are not there yet.
    fn parent_of(&mut self, cpus: &CpuPlan, cpu: &PlannedCpu, root: u32) -> u32 {
        let PlannedCpu {
            package, die, core, ..
        } = *cpu;
        // The package's id is the _UID of its container in the DSDT.
        let mut parent = self.group(
            Group::Package(package),
            flags::PHYSICAL_PACKAGE | flags::IDENTICAL | flags::ACPI_ID_VALID,
            root,
            package,
        );
        if cpus.topology.dies_per_package > 1 {
            parent = self.group(Group::Die(package, die), flags::IDENTICAL, parent, 0);
        }
        if cpus.topology.threads_per_core > 1 {
            let core = Group::Core(package, die, core);
            parent = self.group(core, flags::IDENTICAL, parent, 0);
        }
        parent
    }

    fn group(&mut self, group: Group, flags: u32, parent: u32, acpi_id: u32) -> u32 {
        if let Some(offset) = self.groups.get(&group) {
            return *offset;
        }
        let offset = self.push(flags, parent, acpi_id);
        self.groups.insert(group, offset);
        offset
    }
}
