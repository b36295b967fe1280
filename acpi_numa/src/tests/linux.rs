//! Numbers that Linux has been seen to give, and tables that it does not take.

use alloc::string::ToString;

use super::*;
use crate::linux::{Kernel, Numbering, Problem, numbering};
use crate::srat::{Entry, Srat};

fn read(nodes: Vec<Node>) -> Srat {
    srat::read(srat::encode(&topology(nodes), &IDS).bytes()).unwrap()
}

fn domains(numbering: &Numbering) -> Vec<u32> {
    numbering.nodes().iter().map(|node| node.pxm.0).collect()
}

/// A guest with memory alone in node 1 and eight empty nodes of a device, 2 to 9.
fn device_behind_memory(initiators: bool) -> Srat {
    let mut nodes = vec![host(0), host(1)];
    nodes[1].processors.clear();
    nodes.extend((2..10).map(|number| {
        let mut node = Node::new(pxm(number));
        if initiators {
            node.initiators.push(pci(0, 0, 5, 0));
        }
        node
    }));
    read(nodes)
}

#[test]
fn generic_initiators_come_before_memory() {
    let numbering = numbering(&device_behind_memory(true), Kernel::ARM64);
    assert_eq!(domains(&numbering), [0, 2, 3, 4, 5, 6, 7, 8, 9, 1]);
    assert_eq!(numbering.number(pxm(1)), Some(9));
    assert_eq!(numbering.number(pxm(2)), Some(1));
    assert_eq!(numbering.renumbered().count(), 9);
    assert_eq!(numbering.problems(), []);
    let memoryless: Vec<_> = numbering.memoryless().collect();
    let expected: Vec<_> = (2..10)
        .map(|number| (pxm(number), number as usize - 1))
        .collect();
    assert_eq!(memoryless, expected);
    let node = numbering.nodes()[1];
    assert!(node.initiators && node.memory_entry && !node.memory && !node.processors);
}

#[test]
fn empty_entries_alone_keep_the_order() {
    let numbering = numbering(&device_behind_memory(false), Kernel::ARM64);
    assert_eq!(domains(&numbering), (0..10).collect::<Vec<_>>());
    assert_eq!(numbering.renumbered().count(), 0);
    assert!(numbering.nodes()[0].processors && numbering.nodes()[0].memory);
}

#[test]
fn the_tables_order_counts_for_processors_and_initiators() {
    let mut srat = device_behind_memory(true);
    let first = srat.entries.remove(0);
    assert!(matches!(first, Entry::X2apic(_)));
    srat.entries.push(first);
    let numbering = numbering(&srat, Kernel::ARM64);
    assert_eq!(domains(&numbering), [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
}

#[test]
fn generic_ports_and_unknown_entries_do_not_count() {
    let mut node = Node::new(pxm(1));
    node.ports.push(pci(0, 0, 0, 0));
    node.memory_placeholder = false;
    let mut srat = read(vec![host(0), node]);
    srat.entries.push(Entry::Unknown {
        entry_type: 4,
        bytes: vec![4, 12, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    });
    let numbering = numbering(&srat, Kernel::X86_64);
    assert_eq!(domains(&numbering), [0]);
    assert_eq!(numbering.number(pxm(1)), None);
}

/// Clears the enabled bit of an entry, whose flags are at `flags`, and mends the checksum.
fn disable(bytes: &mut [u8], entry: usize, flags: usize) {
    assert_eq!(bytes[entry + flags] & 1, 1);
    bytes[entry + flags] &= !1;
    bytes[9] = bytes[9].wrapping_add(1);
}

#[test]
fn disabled_entries_do_not_count() {
    let table = srat::encode(&topology(vec![host(0), host(1), host(2)]), &IDS);
    let mut bytes = table.into_bytes();
    // Three x2APIC entries of 24 bytes, three memory entries of 40.
    disable(&mut bytes, 48 + 24, 12);
    disable(&mut bytes, 48 + 3 * 24 + 2 * 40, 28);
    let numbering = numbering(&srat::read(&bytes).unwrap(), Kernel::X86_64);
    assert_eq!(domains(&numbering), [0, 2, 1]);
    assert!(!numbering.nodes()[1].memory_entry);
    assert!(!numbering.nodes()[2].processors);
}

#[test]
fn a_disabled_initiator_ends_the_first_pass() {
    let mut nodes = vec![host(0)];
    for number in [2, 1, 3] {
        let mut node = Node::new(pxm(number));
        node.initiators.push(pci(0, 0, 0, 0));
        node.memory_placeholder = number != 3;
        nodes.push(node);
    }
    let mut bytes = srat::encode(&topology(nodes), &IDS).into_bytes();
    disable(&mut bytes, 48 + 24 + 32, 24);
    let numbering = numbering(&srat::read(&bytes).unwrap(), Kernel::X86_64);
    assert_eq!(domains(&numbering), [0, 1, 2]);
    assert_eq!(
        numbering.problems(),
        [Problem::DisabledInitiator { pxm: pxm(2) }]
    );
    assert!(!numbering.nodes()[2].initiators);
}

#[test]
fn kernels_have_so_many_nodes() {
    let nodes = |count| (0..count).map(host).collect();
    assert_eq!(numbering(&read(nodes(16)), Kernel::ARM64).problems(), []);
    let srat = read(nodes(17));
    assert_eq!(
        numbering(&srat, Kernel::ARM64).problems()[0].to_string(),
        "there are 17 NUMA nodes, but the guest's kernel is built for 16: it will see one node \
         with everything in it"
    );
    assert_eq!(numbering(&srat, Kernel::X86_64).problems(), []);
    assert_eq!(numbering(&srat, Kernel::ARM64).nodes().len(), 17);
}

#[test]
fn kernels_know_numbers_up_to() {
    let problems = |number, kernel| {
        numbering(&read(vec![host(number)]), kernel)
            .problems()
            .to_vec()
    };
    assert_eq!(problems(255, Kernel::ARM64), []);
    assert_eq!(
        problems(256, Kernel::ARM64),
        [Problem::DomainTooHigh {
            pxm: pxm(256),
            end: 256
        }]
    );
    assert_eq!(problems(1023, Kernel::X86_64), []);
    assert!(
        problems(256, Kernel::ARM64)[0]
            .to_string()
            .ends_with("use 0 to 255")
    );
}

#[test]
fn old_revisions_have_eight_bits() {
    let mut node = host(0x102);
    node.processors = vec![Processor::LocalApic {
        apic_id: 1,
        sapic_eid: 0,
        clock_domain: 0,
    }];
    let mut srat = read(vec![node]);
    assert_eq!(domains(&numbering(&srat, Kernel::X86_64)), [0x102]);
    srat.revision = 1;
    assert_eq!(domains(&numbering(&srat, Kernel::X86_64)), [2]);
    let mut srat = read(vec![host(0x102)]);
    srat.revision = 1;
    assert_eq!(domains(&numbering(&srat, Kernel::X86_64)), [0x102, 2]);
}

#[test]
fn without_memory_entries_there_is_no_numa() {
    let mut node = Node::new(pxm(0));
    node.processors.push(x2apic(0));
    node.memory_placeholder = false;
    let numbering = numbering(&read(vec![node]), Kernel::X86_64);
    assert_eq!(numbering.problems(), [Problem::NoMemory]);
}
