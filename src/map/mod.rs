//! Where the bytes of every payload are. Deliberately not here yet: everything but the trees.

pub(crate) mod extent;
pub(crate) mod tree;
