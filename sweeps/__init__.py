"""After the jobs: run records to curves and reports. Imports no torch.

Installed as the package `shadow.sweeps`, for others have a package `sweeps` (W&B is one): what lies here is
imported from here by relative names.
"""
