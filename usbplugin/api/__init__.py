"""The kubelet's gRPC APIs: generated from ``protos/`` by ``make protos``, never edited by hand."""
