"""Programs for those who work on the project: documents and pictures. No part of the installed package."""
