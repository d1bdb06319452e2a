//! The strict VPC.
