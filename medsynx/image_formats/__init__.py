"""One synthetic image as PNG, DICOM or NIfTI; each module's ``encode`` is an :data:`medsynx.image_files.Encoder`."""
