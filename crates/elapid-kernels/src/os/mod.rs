//! What elapid asks of the system. Only this folder knows which system it is: Linux, another Unix or Windows.
//!
//! Where a system lacks something, a function returns `None` or `false`, or does nothing; its documentation says so.

mod available;
pub mod files;
pub mod machine;
pub mod memory;
pub mod process;
