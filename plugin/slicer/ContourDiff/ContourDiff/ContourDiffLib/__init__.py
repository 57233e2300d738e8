# SPDX-License-Identifier: Apache-2.0
"""What the module of 3D Slicer is made of, beside its widget."""
