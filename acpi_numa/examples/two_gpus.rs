//! A machine with a processor node and two GPUs, each of which brings eight nodes' worth of memory
//! that appears only when the guest's driver starts.
//!
//! With `--write FOLDER` the tables go there, to be looked at with `iasl -d`.

use std::error::Error;
use std::path::Path;

use acpi_numa::aml::{DeviceProperties, NodeRange, NodeRangeKeys, acpi_tables::Aml};
use acpi_numa::linux::{self, Kernel};
use acpi_numa::{
    DeviceHandle, MemoryRange, Node, Processor, ProximityDomain, Table, TableIds, Topology,
    TopologySpec, slit, srat,
};

const IDS: TableIds = TableIds {
    oem_id: *b"EXAMPL",
    oem_table_id: *b"TWO GPUS",
    oem_revision: 1,
    creator_id: *b"NUMA",
    creator_revision: 1,
};

/// The GPUs' first nodes. Eight is what a GPU needs that can be cut into seven parts.
const GPUS: [u32; 2] = [1, 9];
const NODES_PER_GPU: u32 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut nodes = vec![Node {
        processors: (0..4)
            .map(|uid| Processor::Gicc {
                uid,
                clock_domain: 0,
            })
            .collect(),
        memory: vec![MemoryRange::new(0x4000_0000, 4 << 30)],
        ..Node::new(ProximityDomain(0))
    }];
    for (gpu, first) in (0..).zip(GPUS) {
        for number in first..first + NODES_PER_GPU {
            let device = DeviceHandle::Pci {
                segment: 1 + gpu,
                bus: 0,
                device: 0,
                function: 0,
            };
            nodes.push(Node {
                initiators: vec![device],
                ..Node::new(ProximityDomain(number))
            });
        }
    }
    let spec = TopologySpec {
        nodes,
        ..TopologySpec::default()
    };
    let topology = Topology::new(spec).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;

    let tables = [srat::encode(&topology, &IDS), slit::encode(&topology, &IDS)];
    for table in &tables {
        println!("{}: {} bytes", table.signature(), table.bytes().len());
    }
    for first in GPUS {
        let nodes: Vec<_> = (first..first + NODES_PER_GPU)
            .map(ProximityDomain)
            .collect();
        let range = NodeRange::new(&nodes)?;
        let properties =
            DeviceProperties::new().with_nodes(NodeRangeKeys::NVIDIA_GPU_MEM, range)?;
        let mut aml = Vec::new();
        properties.to_aml_bytes(&mut aml);
        println!(
            "_DSD of the GPU with nodes from {first}: {} bytes",
            aml.len()
        );
    }

    // What the guest will make of it, read from the bytes that it will read.
    let numbering = linux::numbering(&srat::read(tables[0].bytes())?, Kernel::ARM64);
    for problem in numbering.problems() {
        println!("warning: {problem}");
    }
    for (pxm, number) in numbering.renumbered() {
        println!("node {pxm} will be node {number} in the guest");
    }

    let mut arguments = std::env::args().skip(1);
    if let (Some("--write"), Some(folder)) = (arguments.next().as_deref(), arguments.next()) {
        write(&tables, Path::new(&folder))?;
    }
    Ok(())
}

fn write(tables: &[Table], folder: &Path) -> Result<(), Box<dyn Error>> {
    for table in tables {
        let file = folder.join(format!("{}.aml", table.signature()));
        std::fs::write(&file, table.bytes()).map_err(|error| format!("{file:?}: {error}"))?;
    }
    Ok(())
}
