//! How long the tables of the largest topology take.

use std::hint::black_box;

use acpi_numa::{
    DistanceSpec, MemoryRange, Node, Processor, ProximityDomain, TableIds, Topology, TopologySpec,
    slit, srat,
};
use criterion::Criterion;

const IDS: TableIds = TableIds {
    oem_id: *b"ACPNUM",
    oem_table_id: *b"TOPOLOGY",
    oem_revision: 1,
    creator_id: *b"BNCH",
    creator_revision: 1,
};

/// 1,024 nodes with four processors and a memory range each.
fn largest() -> TopologySpec {
    let nodes = (0..=ProximityDomain::MAX.0).map(|number| Node {
        processors: (0..4)
            .map(|processor| Processor::X2apic {
                id: number * 4 + processor,
                clock_domain: 0,
            })
            .collect(),
        memory: vec![MemoryRange::new(u64::from(number) << 32, 1 << 32)],
        ..Node::new(ProximityDomain(number))
    });
    TopologySpec {
        nodes: nodes.collect(),
        distances: DistanceSpec::default(),
        ..TopologySpec::default()
    }
}

fn encode(criterion: &mut Criterion) {
    let spec = largest();
    let topology = Topology::new(spec.clone()).expect("a topology");
    criterion.bench_function("check 1024 nodes", |bencher| {
        bencher.iter_with_setup(|| spec.clone(), Topology::new);
    });
    criterion.bench_function("write SRAT of 1024 nodes", |bencher| {
        bencher.iter(|| srat::encode(black_box(&topology), &IDS));
    });
    criterion.bench_function("write SLIT of 1024 nodes", |bencher| {
        bencher.iter(|| slit::encode(black_box(&topology), &IDS));
    });
    criterion.bench_function("check and write all of 1024 nodes", |bencher| {
        bencher.iter_with_setup(
            || spec.clone(),
            |spec| {
                let topology = Topology::new(spec).expect("a topology");
                [srat::encode(&topology, &IDS), slit::encode(&topology, &IDS)]
            },
        );
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    encode(&mut criterion);
    criterion.final_summary();
}
