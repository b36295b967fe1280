mod golden;
pub(crate) mod iasl;
mod pci;
mod property;
mod samples;
