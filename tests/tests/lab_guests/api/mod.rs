//! Linux guests of a VMM that is driven over its REST API, as whoever launches it drives it.

mod lifecycle;
mod nodes;
mod pause;
