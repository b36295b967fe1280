//! What an HMAT can tell, and what is refused because guests would drop the table.

use alloc::string::ToString;

use super::*;
use crate::hmat::{Access, DataType, Localities, Metric, Structure, Value};

fn latency(picoseconds: u32) -> Path {
    Path::Reachable {
        latency: Some(Figure::Access(Latency::from_picoseconds(picoseconds))),
        bandwidth: None,
    }
}

fn with_paths(paths: &[(u32, u32, Path)]) -> TopologySpec {
    let mut spec = spec(vec![host(0), host(1), host(2)]);
    let paths = paths.iter();
    spec.performance
        .paths
        .extend(paths.map(|(from, to, path)| ((pxm(*from), pxm(*to)), *path)));
    spec
}

/// The matrices that a guest reads.
fn matrices(spec: TopologySpec) -> Vec<Localities> {
    let topology = Topology::new(spec).unwrap();
    let table = hmat::encode(&topology, &IDS).unwrap();
    let structures = hmat::read(table.bytes()).unwrap().structures.into_iter();
    structures
        .filter_map(|structure| match structure {
            Structure::Localities(localities) => Some(localities),
            _ => None,
        })
        .collect()
}

fn kinds(matrices: &[Localities]) -> Vec<(Metric, Access)> {
    let kinds = matrices.iter().filter_map(Localities::data_type);
    kinds
        .map(|DataType { metric, access }| (metric, access))
        .collect()
}

#[track_caller]
fn error(spec: TopologySpec) -> PerformanceError {
    match Topology::new(spec).unwrap_err().as_slice() {
        [TopologyError::Performance(error)] => error.clone(),
        errors => panic!("{errors:?}"),
    }
}

#[test]
fn without_performance_there_is_no_hmat() {
    assert_eq!(hmat::encode(&topology(vec![host(0)]), &IDS), None);
}

#[test]
fn units() {
    let latency = Latency::from_nanoseconds(4_294_967).unwrap();
    assert_eq!(latency.picoseconds(), 4_294_967_000);
    assert_eq!(Latency::from_nanoseconds(4_294_968), None);
}

#[test]
fn values_are_told_exactly() {
    let matrices = matrices(with_paths(&[
        (0, 0, latency(131_068)),
        (0, 1, latency(2)),
        (1, 2, latency(4)),
    ]));
    assert_eq!(kinds(&matrices), [(Metric::Latency, Access::Any)]);
    let value = |from, to| matrices[0].value(pxm(from), pxm(to));
    assert_eq!(matrices[0].base_unit(), 2);
    assert_eq!(value(0, 0), Some(Value::Known(131_068)));
    assert_eq!(value(0, 1), Some(Value::Known(2)));
    assert_eq!(value(1, 2), Some(Value::Known(4)));
    assert_eq!(value(1, 1), Some(Value::Unknown));
    assert_eq!(value(2, 0), None);
}

#[test]
fn values_that_have_no_common_unit() {
    let paths = |largest| with_paths(&[(0, 0, latency(largest)), (0, 1, latency(1))]);
    assert_eq!(
        matrices(paths(0xfffe))[0].value(pxm(0), pxm(0)),
        Some(Value::Known(0xfffe))
    );
    assert_eq!(
        error(paths(0xffff)).to_string(),
        "latency values up to 65535 ps cannot all be told as 1 to 65534 times one unit: round \
         them to multiples of 10 ps"
    );
    assert!(matches!(
        error(paths(u32::MAX)),
        PerformanceError::NoCommonUnit { unit: 100_000, .. }
    ));
}

#[test]
fn values_of_zero_and_paths_of_which_nothing_is_said() {
    let bandwidth = Bandwidth::from_megabytes_per_second;
    assert_eq!(
        error(with_paths(&[(0, 1, latency(0))])).to_string(),
        "the latency from node 0 to node 1 is 0: leave out what is not known"
    );
    for (read, write) in [(0, 1), (1, 0), (0, 0)].map(|(r, w)| (bandwidth(r), bandwidth(w))) {
        let path = Path::Reachable {
            latency: None,
            bandwidth: Some(Figure::ReadWrite { read, write }),
        };
        assert!(matches!(
            error(with_paths(&[(0, 1, path), (0, 2, latency(1))])),
            PerformanceError::Zero {
                metric: Metric::Bandwidth,
                ..
            }
        ));
    }
    let zeroes = [(0, 1, latency(0)), (1, 1, latency(0))];
    assert_eq!(Topology::new(with_paths(&zeroes)).unwrap_err().len(), 2);
    let nothing = Path::Reachable {
        latency: None,
        bandwidth: None,
    };
    assert!(matches!(
        error(with_paths(&[(0, 1, nothing)])),
        PerformanceError::NoFigures { .. }
    ));
}

#[test]
fn read_and_write_are_told_apart_for_all_or_for_none() {
    let bandwidth = Bandwidth::from_megabytes_per_second;
    let apart = Path::Reachable {
        latency: None,
        bandwidth: Some(Figure::ReadWrite {
            read: bandwidth(30),
            write: bandwidth(20),
        }),
    };
    let alike = Path::Reachable {
        latency: None,
        bandwidth: Some(Figure::Access(bandwidth(50))),
    };
    let matrices = matrices(with_paths(&[
        (0, 0, alike),
        (0, 1, apart),
        (0, 2, latency(7)),
    ]));
    assert_eq!(
        kinds(&matrices),
        [
            (Metric::Latency, Access::Any),
            (Metric::Bandwidth, Access::Read),
            (Metric::Bandwidth, Access::Write)
        ]
    );
    let value = |matrix: usize, to| matrices[matrix].value(pxm(0), pxm(to));
    assert_eq!([value(1, 0), value(2, 0)], [Some(Value::Known(50)); 2]);
    assert_eq!(value(1, 1), Some(Value::Known(30)));
    assert_eq!(value(2, 1), Some(Value::Known(20)));
    assert_eq!(value(0, 1), None);
}

#[test]
fn paths_that_do_not_exist() {
    let only = matrices(with_paths(&[(0, 1, Path::Unreachable)]));
    assert_eq!(kinds(&only), [(Metric::Latency, Access::Any)]);
    assert_eq!(only[0].value(pxm(0), pxm(1)), Some(Value::Unreachable));
    let both = matrices(with_paths(&[(0, 0, latency(3)), (1, 0, Path::Unreachable)]));
    assert_eq!(both.len(), 1);
    assert_eq!(both[0].value(pxm(1), pxm(0)), Some(Value::Unreachable));
}

#[test]
fn nodes_that_would_make_guests_drop_the_table() {
    let without_memory = Node {
        initiators: vec![pci(0, 0, 0, 0)],
        memory_placeholder: false,
        ..Node::new(pxm(3))
    };
    let no_memory = PerformanceError::NoMemory { pxm: pxm(3) };
    let no_initiator = PerformanceError::NoInitiator { pxm: pxm(4) };
    let unknown = PerformanceError::UnknownNode { pxm: pxm(5) };
    let base = spec(vec![host(0), without_memory, Node::new(pxm(4))]);
    let path = |from, to| {
        let mut spec = base.clone();
        spec.performance
            .paths
            .insert((pxm(from), pxm(to)), latency(1));
        spec
    };
    let attachment = |memory, initiator| {
        let mut spec = base.clone();
        spec.performance
            .attachments
            .insert(pxm(memory), pxm(initiator));
        spec
    };
    for spec in [path(3, 4), attachment(4, 3), attachment(0, 0)] {
        Topology::new(spec).unwrap();
    }
    assert_eq!(error(path(0, 3)), no_memory);
    assert_eq!(error(attachment(3, 0)), no_memory);
    assert_eq!(error(path(4, 0)), no_initiator);
    assert_eq!(error(attachment(0, 4)), no_initiator);
    assert_eq!(error(path(5, 0)), unknown);
    assert_eq!(error(path(0, 5)), unknown);
    assert_eq!(error(attachment(5, 0)), unknown);
    assert_eq!(error(attachment(0, 5)), unknown);
}

#[test]
fn a_path_may_end_at_a_generic_port() {
    let mut spec = with_paths(&[(0, 3, latency(1))]);
    spec.nodes.push(Node {
        ports: vec![pci(0, 0, 0, 0)],
        memory_placeholder: false,
        ..Node::new(pxm(3))
    });
    assert_eq!(matrices(spec.clone())[0].targets(), [pxm(3)]);
    // Memory attached there would be memory in a node without a memory entry.
    spec.performance.attachments.insert(pxm(3), pxm(0));
    assert_eq!(error(spec), PerformanceError::NoMemory { pxm: pxm(3) });
}

#[test]
fn caches() {
    let cache = |memory, level, total_levels| MemorySideCache {
        memory: pxm(memory),
        size: 1,
        total_levels,
        level,
        associativity: Associativity::None,
        write_policy: WritePolicy::None,
        line_size: 64,
        smbios_handles: vec![],
    };
    let with = |caches: &[MemorySideCache]| {
        let mut spec = spec(vec![host(0), host(1)]);
        spec.performance.caches = caches.to_vec();
        spec
    };
    Topology::new(with(&[cache(0, 1, 2), cache(0, 2, 2), cache(1, 3, 3)])).unwrap();
    for (level, total) in [(0, 0), (0, 1), (2, 1), (4, 4)] {
        assert!(matches!(
            error(with(&[cache(0, level, total)])),
            PerformanceError::CacheLevel { .. }
        ));
    }
    assert!(matches!(
        error(with(&[cache(0, 1, 1), cache(0, 1, 2)])),
        PerformanceError::DuplicateCache { .. }
    ));
    assert!(matches!(
        error(with(&[cache(2, 1, 1)])),
        PerformanceError::UnknownNode { .. }
    ));
    let mut handles = cache(0, 1, 1);
    handles.smbios_handles = vec![0; 65535];
    Topology::new(with(&[handles.clone()])).unwrap();
    handles.smbios_handles.push(0);
    assert!(matches!(
        error(with(&[handles])),
        PerformanceError::TooManyHandles { count: 65536, .. }
    ));
}

#[test]
fn a_node_is_complained_of_once() {
    let mut spec = with_paths(&[(9, 9, latency(1)), (0, 9, latency(1))]);
    spec.performance.attachments.insert(pxm(9), pxm(9));
    assert_eq!(error(spec), PerformanceError::UnknownNode { pxm: pxm(9) });
}

#[test]
fn unknown_nodes_fill_no_matrix() {
    // As a matrix these would have 2^34 cells.
    let paths = (0..1 << 17).map(|number| ((pxm(number), pxm(number)), latency(1)));
    let mut spec = spec(vec![host(0)]);
    spec.performance.paths.extend(paths);
    assert_eq!(Topology::new(spec).unwrap_err().len(), (1 << 17) - 1);
}
