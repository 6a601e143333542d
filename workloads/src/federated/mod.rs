//! Federated learning on CIFAR-10, in Flower's terms.
