mod golden;
pub(crate) mod iasl;
mod property;
mod samples;
