"""A real, throw-away Kubernetes on this machine, for the demo and the tests.

`python -m tests.cluster up` builds every program from source (Go modules) and every image from Debian packages,
because no container registry can be reached where this project is tested. The story in files:

    __main__ -> cluster (up, down, status) -> build, packages, rootfs      what must be there, cached
                                           -> certificates, configuration  what each component reads
                                           -> components, processes        what runs, in which order
                                           -> images, flowstone_image      what the node can run
                                           -> check                        proof that a pod reaches API, DNS and host
                                           -> cleanup                      what goes, and what a killed cluster left
"""
