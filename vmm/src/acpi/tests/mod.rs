mod golden;
mod iasl;
mod property;
mod samples;
